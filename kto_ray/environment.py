"""Environment variables of processes that compute on a CPU; they must be there when the process starts."""

from __future__ import annotations


def cpu_compute(threads: int) -> dict[str, str]:
    """For a process that runs a model on `threads` threads, beside others on the same cores.

    glibc would hand every large buffer back to the kernel and fault it in again at the next use, which takes up to
    half of the time; and threads that spin while they wait would starve the neighbour.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
        "TOKENIZERS_PARALLELISM": "false",
    }
