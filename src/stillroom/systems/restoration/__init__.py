"""Systems for networks that restore images: super-resolution, flare removal. Their entries in the catalogue."""

from __future__ import annotations

from stillroom.systems.entry import System

SYSTEMS: tuple[System, ...] = ()
