"""The cause of a failed training in words: what Ray Train's errors say, and which of the workers is to be believed."""

from __future__ import annotations

import pytest
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from kto_ray.paths import StorageAway, is_away
from kto_ray.records.training import TrainingFailed
from kto_ray.train.failure import explain


def raised(error: Exception) -> Exception:
    """As a worker hands it over: the exception with its traceback as text."""
    from ray.train.v2._internal.util import construct_user_exception_with_traceback

    try:
        raise error
    except Exception as caught:
        told: Exception = construct_user_exception_with_traceback(caught)
        return told


def real_allocation_failure() -> Exception:
    try:
        torch.empty(2**60, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError("2^60 bytes were to be had")


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (raised(real_allocation_failure()), ["ran out of memory on worker 0", "1152921504606846976", "micro_batch"]),
        (raised(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")), ["ran out of memory", "CUDA"]),
        (raised(MemoryError()), ["ran out of memory"]),
        (OutOfMemoryError("Task was killed due to the node running low on memory."), ["ran out of memory"]),
        (ValueError("no such file"), ["worker 0 failed", "ValueError: no such file"]),
        (WorkerHealthCheckFailedError("poll failed", ActorDiedError()), ["worker 0 was killed or its node was lost"]),
        (ActorDiedError(), ["worker 0 was killed or its node was lost", "lack of memory"]),
        (raised(RuntimeError("the snapshot is damaged")), ["worker 0 failed", "RuntimeError: the snapshot is damaged"]),
    ],
    ids=["cpu", "cuda", "python", "ray", "bare", "killed", "dead", "other"],
)
def test_the_cause_is_told(failure: Exception, told: list[str]) -> None:
    words = explain(WorkerGroupError("", {0: failure}), 3)
    assert "after 3 restarts (train.max_failures)" in words and "\n" not in words
    for part in told:
        assert part in words


def test_the_worker_that_failed_first_is_believed() -> None:
    lost = raised(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"))
    words = explain(WorkerGroupError("", {0: lost, 1: raised(MemoryError("no room"))}), 1)
    assert "out of memory on worker 1, after 1 restart (" in words and "no room" in words


def away() -> Exception:
    """As s3fs has it: ours, from botocore's."""
    try:
        try:
            raise ConnectionError("EndpointConnectionError: Could not connect to the endpoint URL")
        except ConnectionError as cause:
            raise StorageAway("object storage cannot be reached (put_object): nobody listens") from cause
    except StorageAway as error:
        return raised(error)


PYARROW = OSError("When writing key 'x' in bucket 'y': AWS Error NETWORK_CONNECTION during PutObject operation: curl 7")


@pytest.mark.parametrize(
    "failed",
    [WorkerGroupError("", {0: away()}), WorkerGroupError("", {0: raised(PYARROW)}), ControllerError(PYARROW)],
    ids=["ours", "a worker's pyarrow", "the controller's pyarrow"],
)
def test_storage_that_was_away_can_still_be_told_from_other_causes(failed: Exception) -> None:
    assert is_away(TrainingFailed(explain(failed, 3))), explain(failed, 3)


def test_a_run_that_never_had_workers() -> None:
    assert (
        "could not run" in (told := explain(ControllerError(TimeoutError("no GPU in 600 s")), 0)) and "no GPU" in told
    )
