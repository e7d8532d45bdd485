"""Why the workers of a training run failed, in words for whoever runs the loop."""

from __future__ import annotations

from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import TrainingFailedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from kto_ray.paths import StorageAway

NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "memoryerror")
EXCEPTIONS = ("Error", "Exception", "Interrupt", StorageAway.__name__)  # how their classes' names end
LESS_MEMORY = (
    "give the workers more, or lower kto.micro_batch, train.micro_batches or data.max_length, "
    "or set train.gradient_checkpointing: true"
)


def explain(error: TrainingFailedError, max_failures: int) -> str:
    """One sentence: the cause, how often it was tried, and what to do."""
    tries = f"after {max_failures} restart{'s' if max_failures != 1 else ''} (train.max_failures)"
    if not isinstance(error, WorkerGroupError):
        return f"training could not run, {tries}: {_last_line(error)}"
    rank, failure = min(error.worker_failures.items(), key=lambda item: (_is_collateral(item[1]), item[0]))
    if isinstance(failure, WorkerHealthCheckFailedError):
        failure = failure.health_check_failure
    words = _last_line(failure)
    if isinstance(failure, RayActorError):
        return (
            f"training worker {rank} was killed or its node was lost, {tries}; a kill from outside is most often the "
            f"kernel's, for lack of memory: {LESS_MEMORY}"
        )
    if isinstance(failure, OutOfMemoryError) or any(sign in words.lower() for sign in NO_MEMORY):
        return f"training ran out of memory on worker {rank}, {tries}: {words}; {LESS_MEMORY}"
    return f"training worker {rank} failed, {tries}: {words}"


def _is_collateral(failure: Exception) -> bool:
    """Whether a worker failed only since another was gone: then its own words say nothing of the cause."""
    text = str(failure).lower()
    return any(sign in text for sign in ("connection closed by peer", "connection reset", "gloo", "nccl"))


def _last_line(failure: Exception) -> str:
    """The exception itself, of a traceback that may hold several and may go on with a native stack."""
    lines = [line.strip() for line in str(failure).strip().splitlines() if line.strip()]
    named = [line for line in lines if line.split(":")[0].split(".")[-1].endswith(EXCEPTIONS)]
    return named[-1] if named else ": ".join([type(failure).__name__, *lines[-1:]])
