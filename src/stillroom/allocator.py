"""Freed memory that stays with the process, because giving it back and asking for it again costs time."""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""What glibc's `mallopt` calls them (malloc.h)."""
LARGEST = 2**31 - 1
"""Of the int that `mallopt` takes: so much free memory at the heap's end is kept, in bytes."""
LARGEST_ON_HEAP = 2**30
"""Allocations of so many bytes or more still come from the operating system and go back to it."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, so that the next training step on the CPU finds it ready.

    By default glibc gives the activations of a step back to the operating system when the step ends, and the next step
    waits for every page of them anew: between a fiftieth and a fifth of a CIFAR-size step, from run to run
    (`benchmarks/step_time.py`). Afterwards the process holds what it once needed until it ends. The command line and
    the processes it starts do so; a program of yours calls this once, before training. A process whose environment says
    how glibc is to allocate (`MALLOC_...`, `GLIBC_TUNABLES`) is left as it is.

    Returns:
        Whether it was done; not with other C libraries than glibc.
    """
    told = any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"))
    if told or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(TRIM_THRESHOLD, LARGEST)) and bool(mallopt(MMAP_THRESHOLD, LARGEST_ON_HEAP))
