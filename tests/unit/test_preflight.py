"""What is looked at before anything is downloaded, by the system's Python and its standard library alone."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from kto_ray import preflight, processor

ROOT = Path(__file__).parents[2]
AVX2 = processor.read("model name\t: a processor\nflags\t: fpu avx2\n", "x86_64", {})
OLD = processor.read("model name\t: an old one\nflags\t: fpu sse4_2\n", "x86_64", {})
ARM = processor.read("Features\t: fp asimd bf16\n", "aarch64", {})
Usage = namedtuple("Usage", "total used free")


def wrong(flavour: str = "cpu", installed: bool = False) -> str:
    """What the machine is told, empty where it may go on."""
    try:
        preflight.demand(flavour, installed)
    except ValueError as error:
        return str(error)
    return ""


@pytest.fixture(autouse=True)
def _a_good_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "here", lambda: AVX2)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: None)
    monkeypatch.setattr(preflight, "memory_gib", lambda: 16.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 50 * preflight.GIB))


def test_a_machine_that_has_all_may_go_on() -> None:
    assert wrong() == "" and wrong("gpu") == "" and wrong(installed=True) == ""


@pytest.mark.parametrize(
    ("processor_", "flavour", "told"),
    [(OLD, "cpu", "use a processor with AVX2"), (ARM, "cpu", "x86-64"), (ARM, "gpu", "x86-64")],
)
def test_a_processor_that_the_wheels_are_not_for(
    monkeypatch: pytest.MonkeyPatch, processor_: Any, flavour: Any, told: Any
) -> None:
    monkeypatch.setattr(processor, "here", lambda: processor_)
    assert told in wrong(flavour) and processor_.name in wrong(flavour)


def test_a_gpu_machine_needs_no_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "here", lambda: OLD)
    assert wrong("gpu") == ""


def test_too_little_memory_and_disk_are_told_together_with_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "memory_gib", lambda: 3.8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 2 * preflight.GIB))
    told = wrong()
    assert "3.8 GiB, 12 wanted" in told and "2.0 GiB free, 5 wanted; make room on the disk" in told
    assert "disk" not in wrong(installed=True)  # the demo alone needs less


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert "install Python 3.11 to 3.13, or set PYTHON=" in wrong()


def test_a_small_image_lacks_a_library_of_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert "libnuma.so.1: cannot open" in wrong() and "apt-get install libnuma1" in wrong()
    assert wrong("gpu") == ""


def test_it_runs_without_a_single_package() -> None:
    run = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); "]
    code = "from kto_ray import preflight; print(len(preflight.examine('cpu', False)))"
    done = subprocess.run([*run[:-1], run[-1] + code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "5", done.stderr
