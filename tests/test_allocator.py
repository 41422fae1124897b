"""Freed memory that stays: what a process gives back, and where it does nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from stillroom.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
block, faults = 64 << 20, []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory = bytearray(block)
    memory[::4096] = b"x" * len(memory[::4096])
    del memory
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, faults[-1])
"""


def faults_of(what: str, **environment: str) -> tuple[bool, int]:
    """Whether memory was kept, and the page faults of asking for 64 MiB once more."""
    program, environment = [sys.executable, "-c", PROGRAM, what], os.environ | environment
    kept, faults = subprocess.run(program, capture_output=True, check=True, text=True, env=environment).stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_kept_memory_is_not_asked_for_again():
    kept, faults = faults_of("keep")
    left, of_left = faults_of("leave")
    assert (kept, left) == (True, False)
    assert faults < of_left / 2  # with huge pages both are few


def test_who_tells_the_allocator_otherwise_is_obeyed():
    assert not faults_of("keep", MALLOC_TRIM_THRESHOLD_="131072")[0]
    assert not faults_of("keep", GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072")[0]
