"""What this machine computes natively: which instructions its processor has, and in which precision it is fastest.

Standard library only until a GPU is asked about: set-up and `kto-ray doctor` read it before anything heavy is loaded.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BF16_INSTRUCTIONS = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX", "bf16": "BF16 (Arm)"}  # flag -> its usual name
SHOWN = {"avx2": "AVX2", "avx512f": "AVX-512", **BF16_INSTRUCTIONS}
# Limits that users set on the libraries that compute (PyTorch's environment variables, oneDNN's cpu_isa).
ATEN_LIMIT, ONEDNN_LIMIT = "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"
BF16_GPU = (8, 0)  # CUDA compute capability (Ampere) from which bf16 is native


@dataclass(frozen=True, slots=True)
class Processor:
    """A CPU: its name, and the instructions that libraries may use on it."""

    name: str
    architecture: str  # as `uname -m` has it
    flags: frozenset[str]  # as /proc/cpuinfo has them, without what the environment forbids

    @property
    def bf16(self) -> str | None:
        """The instruction set that multiplies bf16, None where bf16 is emulated."""
        return next((name for flag, name in BF16_INSTRUCTIONS.items() if flag in self.flags), None)

    @property
    def instructions(self) -> tuple[str, ...]:
        """Those that matter here, by their usual names."""
        return tuple(name for flag, name in SHOWN.items() if flag in self.flags)


@dataclass(frozen=True, slots=True)
class Precision:
    """The precision that a process computes in, and why."""

    dtype: str  # "bfloat16", "float16" or "float32"
    why: str
    emulated: bool = False  # named by the user, but the device has no instruction for it


@cache
def here() -> Processor:
    """The processor that this process runs on."""
    return read(Path("/proc/cpuinfo").read_text(), platform.machine(), os.environ)


def read(cpuinfo: str, architecture: str, environment: Mapping[str, str]) -> Processor:
    """A processor from the text of Linux's /proc/cpuinfo. Pure."""
    name = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", cpuinfo, re.MULTILINE)
    found = set(flags[1].split()) if flags else set()
    if environment.get(ATEN_LIMIT, "").lower() in ("default", "avx2"):
        found -= {flag for flag in found if flag.startswith(("avx512", "amx"))}
    isa = environment.get(ONEDNN_LIMIT, environment.get("DNNL_MAX_CPU_ISA", "")).upper()
    if isa not in ("", "ALL", "DEFAULT") and not any(wide in isa for wide in ("BF16", "FP16", "AMX", "AVX10")):
        found -= set(BF16_INSTRUCTIONS)
    return Processor(name[1].strip() if name else architecture, architecture, frozenset(found))


def precision(device: str, wanted: str) -> Precision:
    """What a process on this machine computes in.

    Args:
        device: "cpu" or "gpu".
        wanted: a precision that the user names, which is taken as it is, or "auto" for what is native.
    """
    native = _native_gpu() if device == "gpu" else native_cpu(here())
    if wanted == "auto":
        return native
    if wanted == "bfloat16" and native.dtype != "bfloat16":
        return Precision(wanted, f"named by the config, but slow: {native.why}", emulated=True)
    if wanted == "float16" and device == "cpu":
        return Precision(wanted, "named by the config, but slow: CPUs compute float16 by way of float32", emulated=True)
    return Precision(wanted, "named by the config")


def native_cpu(processor: Processor) -> Precision:
    """Bf16 where the processor multiplies it, else float32. Pure."""
    if processor.bf16:
        return Precision("bfloat16", f"the processor has {processor.bf16}")
    return Precision("float32", "the processor has no bf16 instruction (AVX512-BF16 or AMX), bf16 would be emulated")


def _native_gpu() -> Precision:
    import torch

    if not torch.cuda.is_available():
        return Precision("bfloat16", "no GPU is visible from here; one that has bf16 is assumed")
    capability, name = torch.cuda.get_device_capability(), torch.cuda.get_device_name()
    if capability >= BF16_GPU:
        return Precision("bfloat16", f"{name} has bf16")
    return Precision("float16", f"{name} (compute capability {capability[0]}.{capability[1]}) has no bf16")
