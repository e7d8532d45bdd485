"""A user erased and the model trained again, by the commands: bit for bit the run that never saw that user."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kto_ray.cli import app
from kto_ray.config import load_config
from kto_ray.data.manifest import load_manifest
from kto_ray.data.snapshot import read_split
from kto_ray.paths import Paths
from kto_ray.records.adapters import AdapterVersion
from kto_ray.records.completions import Arm, Completion
from kto_ray.records.feedback import Feedback, FeedbackKind
from kto_ray.store import Store, adapters, completions, feedback, open_store
from tests.support.tiny import tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

# Small enough a window, and a share so low, that a user who floods it changes which rows of others are kept.
SETTINGS = ("data.max_length=96", "data.max_user_share=0.1", "data.max_rows=70", "kto.micro_batch=4",
            "kto.accumulate=1", "kto.learning_rate=2e-3", "train.dtype=float32")  # fmt: skip
OTHERS = [f"user-{i % 20}" for i in range(80)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def settings(home: Path, model: str) -> list[str]:
    return [part for s in (f"home={home}", f"model.id={model}", *SETTINGS) for part in ("--set", s)]


def command(*arguments: str) -> dict[str, Any]:
    """A command in this process, whose Ray is up; what it prints as JSON."""
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def give(store: Store, asked_by: str, name: str, at: float, judged_by: Sequence[str | None]) -> None:
    """A completion and a thumb of each of these."""
    answer = f"{name} is one" if len(name) % 2 else f"there is a lot to say of {name} " * 2
    ask = ({"role": "user", "content": f"What is {name}?"},)
    row = Completion(name, at, "policy", "policy@base", Arm.CHAMPION, ask, answer, "stop", 3, 2, user=asked_by)
    with store.write() as tx:
        completions.insert(tx, row)
        for i, user in enumerate(judged_by):
            up = (int(at) + i) % 3 != 0
            feedback.record(tx, Feedback(f"{name}-{i}", at + 0.1 + i / 100, FeedbackKind.THUMB, name, user, up))


def fill(home: Path, model: str, with_xaver: bool) -> Store:
    """The same feedback, with or without that of xaver, who asks and judges more than anyone, and judges last."""
    store = open_store(load_config(None, (f"home={home}",)).database_url)
    for i, user in enumerate(OTHERS):
        give(store, user, f"thing {i}", 100.0 + i, [user])
        if with_xaver and i % 3 == 0:
            give(store, "xaver", f"secret {i}", 100.5 + i, ["xaver", "user-3", None])
    if with_xaver:
        with store.write() as tx:
            for i in range(0, 80, 5):
                judged = Feedback(f"x-{i}", 300.0 + i, FeedbackKind.EDIT, f"thing {i}", "xaver", text=f"thing {i}!")
                feedback.record(tx, judged)
    return store


def examples(home: Path, snapshot: str) -> set[str]:
    uri = Paths(str(home)).snapshot(snapshot)
    return set(read_split(uri, load_manifest(uri), "train")["example_id"].to_pylist())


def weights(version: AdapterVersion) -> bytes:
    return Path(version.uri, "adapter_model.safetensors").read_bytes()


def version(store: Store, name: str) -> AdapterVersion:
    with store.read() as tx:
        found = adapters.get(tx, name)
    assert found is not None
    return found


@pytest.mark.slow
def test_an_erased_and_retrained_adapter_is_that_of_a_run_that_never_saw_the_user(tmp_path: Path, model: str) -> None:
    seen, never = tmp_path / "seen", tmp_path / "never"
    store = fill(seen, model, with_xaver=True)
    first = command("train", *settings(seen, model))
    with store.write() as tx:
        adapters.set_alias(tx, "champion", first["adapter"], 500.0)
    kept_before = examples(seen, first["snapshot"])
    for i in range(12):  # feedback that the first run did not see is not for the second either
        give(store, f"user-{i}", f"later {i}", 600.0 + i, [f"user-{i}", "xaver"])

    asked = CliRunner().invoke(app, ["erase", "xaver", *settings(seen, model)], input="n\n")
    assert asked.exit_code == 1 and "for good?" in asked.stderr
    planned = command("erase", "xaver", "--dry-run", *settings(seen, model))
    told = command("erase", "xaver", "--retrain", "--yes", *settings(seen, model))
    assert planned["rows"] == told["rows"] == {"completions": 27, "feedback": 82, "feedback_of_others": 27}
    (affected,) = told["snapshots"]
    assert affected["snapshot"] == first["snapshot"] and affected["rows"]["train"] > 4
    assert told["adapters"] == [{"adapter": first["adapter"], "aliases": ["champion"]}]
    (made,) = told["retrained"]
    assert made["instead_of"] == first["adapter"] and "POST /v1/loop/run" in told["next"]

    unseen = fill(never, model, with_xaver=False)
    ideal = command("train", *settings(never, model))
    assert made["snapshot"] == ideal["snapshot"] != first["snapshot"]
    assert weights(version(store, made["adapter"])) == weights(version(unseen, ideal["adapter"]))
    assert weights(version(store, made["adapter"])) != weights(version(store, first["adapter"]))
    assert examples(seen, made["snapshot"]) - kept_before  # rows of others that the user had crowded out
    before, after = (load_manifest(Paths(str(seen)).snapshot(s)) for s in (first["snapshot"], made["snapshot"]))
    assert after.newest_feedback_at < 200.0 < before.newest_feedback_at
    assert all(before.dropped.get(why, 0) > after.dropped.get(why, 0) for why in ("window", "user_cap"))

    again = command("erase", "xaver", "--retrain", "--yes", *settings(seen, model))
    assert again["retrained"] == told["retrained"] and again["rows"]["completions"] == 0
    with store.read() as tx:
        assert len(adapters.every(tx)) == 2
    gone = CliRunner().invoke(app, ["train", "--repeat", first["adapter"], *settings(seen, model)])
    assert isinstance(gone.exception, ValueError) and "purged of a user" in str(gone.exception)

    repeat = [sys.executable, "-m", "kto_ray", "train", "--repeat", made["adapter"], "--json", *settings(seen, model)]
    ended = subprocess.run(repeat, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["same"] is True
