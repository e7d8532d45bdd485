"""A rare word through the whole service, a round of the loop included; erased over HTTP while it runs; and then looked
for in every file that the service, its database and Ray have written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.service import Service, give_labels, service

pytestmark = [pytest.mark.integration, pytest.mark.slow]
MARK = "zyxquorblefitz"
RAY = Path("/tmp/ray/session_latest")


@pytest.fixture
def run(tmp_path: Path, free_port: Any) -> Iterator[Service]:
    with service(tmp_path, free_port(), "retention.after_erasure=retire", "loop.max_attempts=1") as started:
        yield started


def marked(*folders: Path) -> list[str]:
    """Files that hold the word, in their bytes or their names."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert files
    return [str(file) for file in files if MARK.encode() in file.read_bytes() or MARK in str(file)]


def speak(run: Service) -> list[str]:
    """The word wherever a user can say it."""
    user, names = f"user {MARK}", []
    for i in range(6):
        answer = run.chat(f"What is a {MARK}, number {i}?", user=user, stop=[f"{MARK}."])
        names.append(answer.raise_for_status().json()["id"])
    said: list[dict[str, Any]] = [
        {"kind": "thumb", "value": True, "comment": f"a {MARK} of an answer", "tags": {"tag": MARK}},
        {"kind": "edit", "text": f"A {MARK} is a small thing."},
        {"kind": "comment", "comment": f"more on {MARK}", "reason_codes": [MARK]},
    ]
    for name in names:
        for body in said:
            told = run.client.post("/v1/feedback", json={"completion_id": name, "user": user, **body})
            assert told.status_code == 201, told.text
    lost = {"completion_id": f"chatcmpl-{MARK}", "kind": "thumb", "value": True, "user": user}
    assert run.client.post("/v1/feedback", json=lost).status_code == 202
    run.client.get(f"/v1/lineage/{user}").raise_for_status()
    return names


def test_an_erased_text_is_nowhere(run: Service, tmp_path: Path) -> None:
    home = tmp_path / "home"
    names = speak(run)
    give_labels(run, users=30)
    run.wait_stage("train", "load", "gate", "rollout", "done")
    assert marked(home), "the test must be able to fail"
    alone = run.chat(f"Again: what is a {MARK}?").json()["id"]
    assert run.client.delete(f"/v1/completions/{alone}").status_code == 200
    told = run.client.delete(f"/v1/users/user {MARK}")
    assert told.status_code == 200, told.text
    done = told.json()
    assert done["remains"] == [] and done["rows"]["completions"] == len(names)
    assert [held["rows"].keys() & {"train", "holdout"} for held in done["snapshots"]], "the round had sealed them"
    assert marked(home, RAY.resolve(), tmp_path) == []
    assert run.chat("Are you there?").status_code == 200
    ended = run.wait("the round to be let go of", lambda: _let_go(run), 120)
    assert ended
    assert marked(home, RAY.resolve(), tmp_path) == []


def _let_go(run: Service) -> Any:
    """Either the round ended and another began, or its candidate was at users already and is in no alias any more."""
    rounds = run.get("/v1/loop")["rounds"]
    return rounds if len(rounds) > 1 or rounds[0]["outcome"] == "aborted" else None
