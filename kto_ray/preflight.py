"""What a machine must have before anything is downloaded. Standard library only, since set-up runs it with the system's
Python: `python3 -m kto_ray.preflight cpu`. `kto-ray doctor` shows the same checks."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from kto_ray import processor

GIB = 1 << 30
PYTHON = ((3, 11), (3, 14))  # from, below
ARCHITECTURE = "x86_64"  # the locked requirements are of it
GLIBC = (2, 28)
MEMORY_GIB = 12.0  # the processes of a demo together, the embedded model in fp32, need 9.5
DISK_GIB = {"cpu": 5.0, "gpu": 14.0}  # of the virtual environment and the package cache
DEMO_DISK_GIB = 1.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked at: what was found and, where it is not enough, the fix."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def examine(flavour: str, installed: bool) -> list[Check]:
    """The cheap checks: nothing is imported, downloaded or started.

    Args:
        flavour: "cpu" or "gpu", the requirements that are installed.
        installed: the virtual environment is there, so that only the demo's own files need room.
    """
    room = disk(DEMO_DISK_GIB if installed else DISK_GIB[flavour])
    return [python(), machine(flavour), *([libnuma()] if flavour == "cpu" else []), memory(), room]


def python() -> Check:
    have = sys.version_info[:2]
    allowed = f"{PYTHON[0][0]}.{PYTHON[0][1]} to {PYTHON[1][0]}.{PYTHON[1][1] - 1}"
    fits = PYTHON[0] <= have < PYTHON[1]
    return Check("python", fits, platform.python_version(), f"install Python {allowed}, or set PYTHON=/path/to/python")


def machine(flavour: str) -> Check:
    """The processor and the C library that the locked wheels are built for."""
    this = processor.here()
    libc, version = platform.libc_ver()
    words = (
        f"{this.name}, {this.architecture}, {', '.join(this.instructions) or 'no AVX2'}; {libc or 'no glibc'} {version}"
    )
    if platform.system() != "Linux" or this.architecture != ARCHITECTURE:
        return Check("processor", False, words, "use Linux on x86-64, which the locked requirements are for")
    if libc != "glibc" or tuple(map(int, version.split(".")[:2])) < GLIBC:
        return Check("processor", False, words, f"use a Linux with glibc {GLIBC[0]}.{GLIBC[1]} or newer")
    if flavour == "cpu" and "avx2" not in this.flags:
        return Check("processor", False, words, "use a processor with AVX2, which vLLM for CPUs is built for")
    return Check("processor", True, words)


def libnuma() -> Check:
    """vLLM for CPUs is linked to it, its wheel does not bring it, and small images of Debian and Fedora lack it."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError as error:
        fix = "apt-get install libnuma1 (Debian, Ubuntu), or dnf install numactl-libs (Fedora)"
        return Check("libnuma", False, str(error), fix)
    return Check("libnuma", True, "libnuma.so.1")


def memory() -> Check:
    have = memory_gib()
    fix = f"give the machine or container at least {MEMORY_GIB:g} GiB"
    return Check("memory", have >= MEMORY_GIB - 0.5, f"{have:.1f} GiB, {MEMORY_GIB:g} wanted", fix)


def memory_gib() -> float:
    """Of the machine, or of the container that this runs in (cgroup v2)."""
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        have = min(have, int(text) / GIB)
    return have


def disk(wanted_gib: float) -> Check:
    free = shutil.disk_usage(".").free / GIB
    where = Path.cwd()
    return Check(
        "disk", free >= wanted_gib, f"{free:.1f} GiB free, {wanted_gib:g} wanted", f"make room on the disk of {where}"
    )


def demand(flavour: str, installed: bool) -> None:
    """Raises:
    ValueError: the machine lacks something; the message names all of it, with the fix.
    """
    wrong = [f"{check.name}: {check.found}; {check.fix}" for check in examine(flavour, installed) if not check.ok]
    if wrong:
        raise ValueError("this machine cannot run kto_ray as it is. " + "\n".join(wrong))


if __name__ == "__main__":
    try:
        demand(sys.argv[1], installed=False)
    except ValueError as error:
        sys.exit(f"error: {error}")
