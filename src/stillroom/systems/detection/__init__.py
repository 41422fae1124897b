"""Systems for networks that find objects, landmarks and poses. Their entries in the catalogue."""

from __future__ import annotations

from stillroom.systems.entry import System

SYSTEMS: tuple[System, ...] = ()
