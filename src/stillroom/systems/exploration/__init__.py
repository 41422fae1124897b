"""Systems that turn experience into curiosity, for agents and robots. Their entries in the catalogue."""

from __future__ import annotations

from stillroom.systems.entry import System

SYSTEMS: tuple[System, ...] = ()
