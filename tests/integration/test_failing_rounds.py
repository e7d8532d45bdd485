"""Rounds whose training cannot finish, through the controller's own loop, real Ray and real training of a tiny model:
each ends with its cause and leaves no adapter, and the round after them trains."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from kto_ray.config import Config
from kto_ray.loop.step import Loop
from kto_ray.records.completions import Arm, Completion
from kto_ray.records.feedback import Feedback, FeedbackKind
from kto_ray.records.requests import Act
from kto_ray.records.rounds import Ended, Loading, Outcome, Round, Stage, Training
from kto_ray.store import adapters, completions, feedback, open_store, requests, rounds, trainings
from kto_ray.store.schema import leases
from kto_ray.train import track
from kto_ray.train.job import read_progress
from tests.support.tiny import tiny_model, too_big_model

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

USERS = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("model"))


def config(home: Path, model: str, **sections: Any) -> Config:
    tree = {
        "home": str(home),
        "model": {"id": model, "max_model_len": 384},
        "data": {"max_length": 128, "max_user_share": 0.2},
        "kto": {"micro_batch": 4, "accumulate": 1},
        "train": {"max_failures": 0, "threads": 1, "checkpoint_steps": 1000},
        "loop": {"enabled": False, "max_attempts": 1},
    }
    return Config.model_validate(tree | {name: tree[name] | changes for name, changes in sections.items()})


def give_labels(settings: Config) -> None:
    store = open_store(settings.database_url)
    with store.write() as tx:
        for i in range(USERS):
            answer = f"I like tea, number {i}." + " and so on" * (0 if i % 2 else 8)
            completions.insert(
                tx,
                Completion(
                    id=f"c{i}",
                    created_at=100.0 + i,
                    model="policy",
                    adapter="policy@base",
                    arm=Arm.CHAMPION,
                    messages=({"role": "user", "content": f"What do you like, number {i}?"},),
                    text=answer,
                    finish_reason="stop",
                    prompt_tokens=8,
                    completion_tokens=8,
                    user=f"u{i}",
                ),
            )
            feedback.record(tx, Feedback(f"f{i}", 200.0 + i, FeedbackKind.THUMB, f"c{i}", f"u{i}", value=bool(i % 2)))
    store.close()


class Driven:
    """The controller's loop, without Serve around it. No round here gets as far as the policy."""

    def __init__(self, settings: Config) -> None:
        self.settings = settings
        self.loop = Loop(settings, policy=None)
        self.store = open_store(settings.database_url)

    def begin(self) -> None:
        with self.store.write() as tx:
            requests.ask(tx, Act.RUN, time.time())

    def until(self, *stages: Stage, meanwhile: Any = lambda current: None) -> Round:
        """Tick until the newest round is in one of the stages."""
        deadline = time.monotonic() + 200
        while True:
            self.loop.step()
            with self.store.read() as tx:
                newest = rounds.newest(tx)
            if newest is not None and newest.stage in stages:
                return newest
            meanwhile(newest)
            assert time.monotonic() < deadline, f"still {newest}"
            time.sleep(0.05)

    def failed(self, meanwhile: Any = lambda current: None) -> str:
        """Until a round failed; why."""
        ended = self.until(Stage.DONE, Stage.LOAD, meanwhile=meanwhile)
        assert isinstance(ended.state, Ended), ended
        assert (ended.state.outcome, ended.state.adapter) == (Outcome.FAILED, None), ended
        assert ended.attempts == 0 and ended.state.reason is not None
        with self.store.read() as tx:
            assert adapters.every(tx) == [] and adapters.aliases(tx, "policy@base") == {"champion": "policy@base"}
        assert not list(Path(self.settings.home).glob("adapters/*")), "half an adapter is left"
        self.hand_over()
        return ended.state.reason

    def hand_over(self) -> None:
        """Another loop, with another config, is to take over at once rather than when this one's lease runs out."""
        with self.store.write() as tx:
            tx.execute(leases.delete())


@pytest.mark.slow
def test_each_ends_with_its_cause_and_the_next_one_trains(model: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    sound = config(home, model)
    give_labels(sound)

    diverging = Driven(config(home, model, kto={"learning_rate": 1e30}))
    diverging.begin()
    reason = diverging.failed()
    assert "train: TrainingDiverged: training diverged at step" in reason
    assert "lower kto.learning_rate" in reason
    assert len(track.read_steps(f"{home}/training/round-1/metrics.jsonl")) >= 1
    assert (home / "reports" / "round-1-training.svg").is_file(), "a failed round is drawn too"

    damaged = Driven(sound)
    damaged.begin()
    sealed = damaged.until(Stage.TRAIN).state
    assert isinstance(sealed, Training)
    shard = home / "snapshots" / sealed.snapshot / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-7] + b"garbage")
    reason = damaged.failed()
    assert "train: ValueError: shard 'train-00000.parquet'" in reason and "is damaged" in reason

    hungry = Driven(config(home, too_big_model(model, tmp_path / "big")))
    hungry.begin()
    reason = hungry.failed()
    assert "train: TrainingFailed: training ran out of memory on worker 0" in reason
    assert "train.micro_batches" in reason

    killed = Driven(config(home, model, kto={"epochs": 1000}))
    killed.begin()
    reason = killed.failed(meanwhile=Killer(killed.settings))
    assert "training worker 0 was killed or its node was lost, after 0 restarts" in reason

    good = Driven(sound)
    good.begin()
    trained = good.until(Stage.LOAD, Stage.DONE)
    assert isinstance(trained.state, Loading), trained
    with good.store.read() as tx:
        assert [version.name for version in adapters.every(tx)] == [trained.state.adapter]
        run = trainings.get(tx, trained.run)
    assert run is not None
    (folder,) = (home / "adapters").iterdir()
    assert (folder / "manifest.json").is_file()
    steps = track.read_steps(f"{home}/training/round-{trained.id}/metrics.jsonl")
    assert [s.loss for s in steps] == [s["loss"] for s in run.history]


class Killer:
    """As the kernel does when memory runs out."""

    def __init__(self, settings: Config) -> None:
        self.settings = settings
        self.victim: int | None = None

    def __call__(self, current: Round) -> None:
        if self.victim is None and current.stage is Stage.TRAIN:
            progress = read_progress(self.settings, f"round-{current.id}")
            if progress is not None:
                self.victim = progress.pid
                os.kill(self.victim, signal.SIGKILL)
