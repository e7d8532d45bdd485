"""Starts Ray here, or joins it elsewhere; and the environment of processes: of those that compute on a CPU, and of
commands, whose screen belongs to the user."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import warnings

from kto_ray.config import Config

NICENESS = 10
# No bars, hints and warnings of libraries: a command tells in its own words what takes long. What a user has set stays.
QUIET = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "PYTHONWARNINGS": "ignore",  # of processes that this one starts
}


def quiet() -> None:
    """Keep libraries' bars and warnings off the screen. Call it before any of them is imported."""
    if "PYTHONWARNINGS" not in os.environ and not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.disable(logging.WARNING)  # Ray, Alembic, vLLM and bitsandbytes tell much that is no one's business here


def cpu_compute(threads: int) -> dict[str, str]:
    """For a process that runs a model on `threads` threads, beside others on the same cores.

    glibc would hand every large buffer back to the kernel and fault it in again at the next use, which takes up to
    half of the time. Threads that wait spin for a fraction of a millisecond and then sleep: spinning for long, as
    libgomp does by itself, starves the neighbour; sleeping at once (OMP_WAIT_POLICY=PASSIVE) adds a fifth to a step.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": "10000",
        "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
        "TOKENIZERS_PARALLELISM": "false",
    }


def cpu_engine(threads: int, kv_cache_gb: int) -> dict[str, str]:
    """For vLLM on a CPU. Pinning, its default, would put every engine of a machine on the same cores."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gb),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        **cpu_compute(threads),
    }


def yield_to_serving() -> None:
    """Let this thread, and those it starts from now on, make way for chat where both compute on the same cores."""
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)


def ask_for_tokens() -> None:
    """Have the local Ray that this process starts answer its own processes only.

    A node speaks on loopback, but each of Serve's replicas listens on every address, and unpickles what it is sent. The
    token is made anew by each process that starts Ray, and stands in the environment alone, which all of Ray inherits.
    """
    # A mode that stands there is meant for another cluster; Ray turns tokens on where none does.
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def start_ray(config: Config) -> None:
    """Join the cluster that the config names, or start a local one on loopback."""
    quiet()
    if config.ray.address is None:
        ask_for_tokens()
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray's way to say: on loopback only
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")  # few cores, many small actors: no alarm
        os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")  # every 0.1 s is 3% of a core
        os.environ.setdefault("RAY_worker_niceness", "0")  # serving is what this machine is for
        # Ray Train asks the dashboard, which is not there, at the end of every run, and would wait 12 s for it; a port
        # where nobody listens refuses at once.
        os.environ.setdefault("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    import ray
    from ray._private import ray_constants

    if ray.is_initialized():
        return
    if config.ray.address is not None:
        ray.init(address=config.ray.address)
        return
    # The same for this process, which may have imported Ray, and with it what the environment said, before.
    ray_constants.ENABLE_RAY_CLUSTER = False
    ray.init(
        address="local",  # without it Ray would join whatever cluster another program started on this machine
        num_cpus=config.ray.num_cpus,
        object_store_memory=config.ray.object_store_mb * 1024 * 1024,
        include_dashboard=False,
        log_to_driver=False,
    )
