"""The systems: one file per paper, in a folder per kind of work, and the catalogue."""
