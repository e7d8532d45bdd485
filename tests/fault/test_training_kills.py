"""kill -9 of training workers, of the process that drives the run, of what stands between them and of whole nodes, at
random steps: every row is used once an epoch, and the adapter is that of the run that nobody killed, bit for bit."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import ray
from ray._private import ray_constants
from ray.cluster_utils import Cluster

from kto_ray.config import Config
from kto_ray.data.snapshot import freeze, read_split
from kto_ray.paths import Paths
from kto_ray.records.examples import Example
from kto_ray.records.training import TrainResult
from kto_ray.train.job import RECORD_FILE
from tests.support.kills import Nodes, Run, Sealed, kill, saved_step, strike
from tests.support.tiny import tiny_model
from tests.support.training import weights

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900)]

MICRO, ACCUMULATE = 4, 2
CHECKPOINT_STEPS = 3
EPOCHS = {1: 8, 2: 16}  # by workers: 48 steps each


@dataclass(frozen=True)
class Schedule:
    """Kills of one run, in an order and at steps drawn from the seed.

    Of the first worker, another one, the process that runs `run_training`, the actor that feeds the workers with rows,
    or of all that runs on the node of the first worker or of the driver.
    """

    seed: int
    workers: int
    kills: dict[str, int]


SCHEDULES = (
    Schedule(seed=1, workers=1, kills={"worker": 7, "driver": 4}),
    Schedule(seed=2, workers=1, kills={"worker": 4, "driver": 3, "stream": 1}),
    Schedule(seed=3, workers=1, kills={"node of the worker": 3, "node of the driver": 3}),
    Schedule(seed=4, workers=2, kills={"worker": 2, "other worker": 2, "driver": 1}),
)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # its default would be 40 of our steps
        lost = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
        head = {"num_cpus": 0, "include_dashboard": False, "node_ip_address": "127.0.0.1", "_system_config": lost}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        started = Nodes(cluster)
        started.add()
        started.add()
        with patch.context() as connecting:  # else it looks for the head at the machine's outward address
            connecting.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
            ray.init(address=cluster.address, _node_ip_address="127.0.0.1", log_to_driver=False)
        yield started
        ray.shutdown()
        cluster.shutdown()


def config(model: str, home: Path, workers: int) -> Config:
    return Config.model_validate(
        {
            "home": str(home),
            "model": {"id": model},
            "data": {"max_length": 128, "max_user_share": 0.5},
            "kto": {"micro_batch": MICRO, "accumulate": ACCUMULATE, "epochs": EPOCHS[workers], "dropout": 0.1},
            "train": {
                "dtype": "float32",
                "threads": 1,
                "workers": workers,
                "checkpoint_steps": CHECKPOINT_STEPS,
                "max_failures": 2,
            },
            "ray": {"pool_label": "pool"},
        }
    )


@pytest.fixture(scope="module")
def sealed(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Sealed]:
    """The tiny model, and a snapshot of answers of many lengths, frozen for it."""
    model = tiny_model(tmp_path_factory.mktemp("model"))
    settings = config(model, tmp_path_factory.mktemp("home"), 1)
    given = examples()
    manifest = freeze(settings, model, [0], lambda _: given, {}, 1.0)
    uri = Paths(settings.home).snapshot(manifest.id)
    rows = read_split(uri, manifest, "train").to_pylist()
    lengths = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows]
    assert len(rows) % (MICRO * ACCUMULATE) == MICRO, "an epoch's last step is smaller than the others"
    return model, Sealed(manifest, uri, lengths)


def examples() -> list[Example]:
    pick = random.Random(0)
    return [
        Example(
            id=f"{i:032x}",
            completion_id=f"c{i}",
            user=f"user{i}",
            messages=({"role": "user", "content": f"What is {i} plus one?"},),
            answer=f"It is {i + 1}" + " or so" * pick.randrange(20),
            desirable=i % 3 != 0,
            source="thumb",
            adapter="policy@base",
            created_at=1000.0 + i,
        )
        for i in range(53)
    ]


def expected_rows(snapshot: Sealed, steps_rows: int, epochs: int) -> list[int]:
    """Rows used after each step, when every epoch uses every row once and ends with a step of what is left."""
    rows = len(snapshot.lengths)
    of_epoch = [*range(steps_rows, rows, steps_rows), rows]
    return [epoch * rows + used for epoch in range(epochs) for used in of_epoch]


@pytest.fixture(scope="module")
def whole(sealed: tuple[str, Sealed], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], TrainResult]:
    """The run that nobody kills, by its number of workers."""
    model, snapshot = sealed

    @cache
    def uninterrupted(workers: int) -> TrainResult:
        run = Run(config(model, tmp_path_factory.mktemp("whole"), workers), "whole", snapshot)
        result = run.result()
        assert run.starts == 1, run.errors
        return result

    return uninterrupted


def assert_the_same(result: TrainResult, whole: TrainResult, snapshot: Sealed, settings: Config) -> None:
    """Every row fed one surviving step an epoch, and those steps were the uninterrupted run's to the last bit."""
    workers, epochs = settings.train.workers, settings.kto.epochs
    rows = expected_rows(snapshot, MICRO * ACCUMULATE * workers, epochs)
    assert [record.step for record in result.history] == list(range(1, len(rows) + 1))
    assert [record.rows for record in result.history] == rows
    # The tokens that a step really saw are those of the rows that were its own by the snapshot's order.
    used = [0, *rows]
    lengths = snapshot.lengths * epochs
    assert [r.tokens for r in result.history] == [sum(lengths[a:b]) for a, b in pairwise(used)]
    facts = [[(r.loss, r.kl, r.margin, r.grad_norm, r.learning_rate) for r in x.history] for x in (result, whole)]
    assert facts[0] == facts[1]
    assert weights(result) == weights(whole)


def assert_nothing_is_held() -> None:
    """All CPUs are free again, those of workers whose driver was killed among them."""
    deadline = time.monotonic() + 30
    while (free := ray.available_resources().get("CPU")) != (there := ray.cluster_resources()["CPU"]):
        assert time.monotonic() < deadline, f"{free} of {there} CPUs are free"
        time.sleep(0.5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: f"seed{schedule.seed}")
def test_a_run_ends_as_if_nobody_had_been_killed(
    schedule: Schedule, nodes: Nodes, sealed: tuple[str, Sealed], whole: Callable[[int], TrainResult], tmp_path: Path
) -> None:
    model, snapshot = sealed
    settings = config(model, tmp_path, schedule.workers)
    steps = whole(schedule.workers).steps
    kinds = [kind for kind, times in schedule.kills.items() for _ in range(times)]
    pick = random.Random(schedule.seed)
    pick.shuffle(kinds)
    plan = list(zip(sorted(pick.sample(range(1, steps - 2), len(kinds))), kinds, strict=True))
    print(f"seed {schedule.seed}: {plan}")

    run = Run(settings, "killed", snapshot)
    killed: Counter[str] = Counter()
    at, last = 0.0, 0
    for step, kind in plan:
        progress = run.past(max(step, last + 1), at)
        strike(kind, run, progress, nodes)
        at, last = time.time(), progress.step
        assert last < steps, "it was killed while steps were left"
        killed[kind] += 1
        print(f"{kind}: at step {last}, {run.starts} starts")
    result = run.result()
    print(f"{dict(killed)}, {run.starts} starts, {run.errors}")
    assert killed == schedule.kills
    assert_nothing_is_held()
    assert_the_same(result, whole(schedule.workers), snapshot, settings)


def test_a_kill_in_the_middle_of_a_checkpoint(
    nodes: Nodes, sealed: tuple[str, Sealed], whole: Callable[[int], TrainResult], tmp_path: Path
) -> None:
    """A step is reported before its checkpoint is written: killed at once, that checkpoint is half there."""
    model, snapshot = sealed
    settings = config(model, tmp_path, 1)
    run = Run(settings, "half", snapshot)
    halves, at = 0, 0.0
    for step in (2 * CHECKPOINT_STEPS, 4 * CHECKPOINT_STEPS):
        progress = run.past(step, at)
        kill(progress.pid)
        at = time.time()
        halves += progress.step == step and saved_step(run) < step
    assert halves, "no kill met a checkpoint that was not there yet"
    assert_the_same(run.result(), whole(1), snapshot, settings)


def test_a_record_of_checkpoints_that_a_kill_cut_short(
    nodes: Nodes, sealed: tuple[str, Sealed], whole: Callable[[int], TrainResult], tmp_path: Path
) -> None:
    model, snapshot = sealed
    settings = config(model, tmp_path, 1)
    run = Run(settings, "torn", snapshot)
    progress = run.past(2 * CHECKPOINT_STEPS + 1, 0)
    kill(run.driver)
    psutil.wait_procs([psutil.Process(progress.pid)] if psutil.pid_exists(progress.pid) else [], timeout=60)
    record = tmp_path / "training" / "torn" / RECORD_FILE
    record.write_bytes(record.read_bytes()[:100])
    assert_the_same(run.result(), whole(1), snapshot, settings)
    assert run.starts == 2, run.errors


def test_enough_is_killed() -> None:
    killed = sum((Counter(schedule.kills) for schedule in SCHEDULES), Counter())
    assert killed.total() >= 30 and len(SCHEDULES) >= 4
    assert {"worker", "other worker", "driver", "stream", "node of the worker", "node of the driver"} == set(killed)
