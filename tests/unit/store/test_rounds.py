"""Rounds come back as they were, with their candidates, their trainings, and what is asked of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kto_ray.records.evaluation import GateDecision
from kto_ray.records.requests import NONE, Act
from kto_ray.records.rounds import (
    Awaiting,
    Candidate,
    Ended,
    Judging,
    Loading,
    OnTrial,
    Outcome,
    Reloading,
    Sealing,
    State,
    Training,
    Tried,
)
from kto_ray.records.trainings import TrainingRun
from kto_ray.store import Store, requests, rounds, trainings


@pytest.mark.parametrize(
    "state",
    [
        Sealing(),
        Training("s"),
        Loading("s", "policy@v2"),
        Judging("s", "policy@v2"),
        Reloading("s", "policy@v1"),
        Awaiting("s", "policy@v1"),
        OnTrial("s", "policy@v1", "r"),
        Ended(Outcome.ABORTED, "why", 9.0, "s", "policy@v1", "r"),
    ],
)
def test_a_round_comes_back_with_its_candidates(store: Store, state: State) -> None:
    passed = Candidate("kto", {}, Tried("policy@v1", GateDecision.PROMOTE_TO_CANARY, "sane", 0.05))
    failed = Candidate("big", {"learning_rate": 1.0, "target_modules": ["q_proj"]}, Tried(None, None, "NaN"))
    with store.write() as tx:
        opened = rounds.insert(tx, 5.0, (passed, failed, Candidate("apo", {"loss_type": "apo_zero_unpaired"})))
        assert rounds.newest(tx) == opened
        changed = replace(opened, state=state, attempts=2, stage_s={"train": 3.0})
        rounds.update(tx, changed)
    with store.read() as tx:
        assert rounds.newest(tx) == changed and rounds.get(tx, 1) == changed


def test_each_candidate_of_a_round_has_a_training_of_its_own(store: Store) -> None:
    with store.write() as tx:
        rounds.insert(tx, 5.0)
        runs = [TrainingRun(f"round-1-{i}", "s", float(i), 1, f"policy@v{i}", figures={"of": i}) for i in (1, 2)]
        for run in (*runs, TrainingRun("by-hand", "s", 9.0)):
            trainings.put(tx, run)
        assert trainings.of_rounds(tx, 1) == {run.run: run for run in runs}
        assert trainings.newest_of_a_round(tx) == runs[1]
        assert [rounds.of_adapter(tx, f"policy@v{i}") for i in (1, 2, 3)] == [[1], [1], []]


def test_an_approval_is_meant_for_the_candidate_that_waits_when_it_is_asked(store: Store) -> None:
    with store.write() as tx:
        for act in (Act.APPROVE, Act.REJECT):
            requests.ask(tx, act, 1.0)
        rounds.update(tx, rounds.insert(tx, 5.0).to(Awaiting("s", "policy@v1"), 6.0))
        requests.ask(tx, Act.REJECT, 1.0)
        requests.ask(tx, Act.APPROVE, 1.0, target="policy@v7")
        assert [request.target for request in requests.asked(tx)] == [NONE, NONE, "policy@v1", "policy@v7"]
