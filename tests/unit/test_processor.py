"""Which precision a machine computes in, from what Linux and the environment say of it."""

from __future__ import annotations

from typing import Any

import pytest

from kto_ray import processor
from kto_ray.config import ConfigError, load_config
from kto_ray.processor import native_cpu, precision, read

ZEN4 = "model name\t: AMD EPYC 9654\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni\n"
SAPPHIRE = "model name\t: Xeon 8480\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n"
MILAN = "model name\t: AMD EPYC 7763\nflags\t\t: fpu avx2\n"
SKYLAKE = "model name\t: Xeon 8173M\nflags\t\t: fpu avx2 avx512f avx512bw\n"
GRAVITON3 = "Features\t: fp asimd bf16 i8mm\n"


@pytest.mark.parametrize(
    ("cpuinfo", "environment", "dtype", "instructions"),
    [
        (ZEN4, {}, "bfloat16", ("AVX2", "AVX-512", "AVX512-BF16")),
        (SAPPHIRE, {}, "bfloat16", ("AVX2", "AVX-512", "AVX512-BF16", "AMX")),
        (GRAVITON3, {}, "bfloat16", ("BF16 (Arm)",)),
        (MILAN, {}, "float32", ("AVX2",)),
        (SKYLAKE, {}, "float32", ("AVX2", "AVX-512")),
        ("", {}, "float32", ()),
        (SAPPHIRE, {"ATEN_CPU_CAPABILITY": "avx2"}, "float32", ("AVX2",)),
        (ZEN4, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "float32", ("AVX2", "AVX-512")),
        (ZEN4, {"DNNL_MAX_CPU_ISA": "avx512_core"}, "float32", ("AVX2", "AVX-512")),
        (ZEN4, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "bfloat16", ("AVX2", "AVX-512", "AVX512-BF16")),
        (ZEN4, {"ONEDNN_MAX_CPU_ISA": "ALL"}, "bfloat16", ("AVX2", "AVX-512", "AVX512-BF16")),
    ],
)
def test_a_cpu_computes_in_what_it_multiplies(cpuinfo: Any, environment: Any, dtype: Any, instructions: Any) -> None:
    found = read(cpuinfo, "x86_64", environment)
    assert native_cpu(found).dtype == dtype
    assert found.instructions == instructions
    assert not native_cpu(found).emulated


@pytest.mark.parametrize(("cpuinfo", "emulated"), [(MILAN, True), (ZEN4, False)])
def test_a_named_precision_is_taken_and_told_where_it_is_emulated(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: Any, emulated: Any
) -> None:
    monkeypatch.setattr(processor, "here", lambda: read(cpuinfo, "x86_64", {}))
    found = precision("cpu", "bfloat16")
    assert (found.dtype, found.emulated) == ("bfloat16", emulated)
    assert precision("cpu", "float32") == processor.Precision("float32", "named by the config")
    assert precision("cpu", "auto").dtype == ("float32" if emulated else "bfloat16")


@pytest.mark.parametrize(
    ("overrides", "served", "model", "train"),
    [
        ((), "float32", "float32", "float32"),
        (("train.dtype=float32",), "bfloat16", "bfloat16", "float32"),
        (("model.dtype=float32",), "bfloat16", "float32", "float32"),
        (("model.dtype=bfloat16", "train.dtype=float32"), "float16", "bfloat16", "float32"),
    ],
)
def test_training_follows_what_is_served_unless_it_is_named(
    overrides: Any, served: Any, model: Any, train: Any
) -> None:
    decided = load_config(None, overrides).with_dtype(served)
    assert (decided.model.dtype, decided.train.dtype) == (model, train)


def test_float16_is_not_trained_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match=r"float16 is trained on GPUs only; set train\.dtype: float32"):
        load_config(None, ("model.dtype=float16",))
    assert load_config(None, ("model.dtype=float16", "train.dtype=float32")).train_dtype == "float32"
