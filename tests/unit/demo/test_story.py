"""A story on the gateway's app, without a controller: users chat, no round begins, and the report says so."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kto_ray.config import load_config
from kto_ray.demo import story
from kto_ray.demo.pace import Patience
from kto_ray.demo.show import Narrator
from kto_ray.people.tastes import TASTES
from kto_ray.people.turns import DemoStopped
from kto_ray.store import Store
from tests.conftest import FreePort
from tests.support.engine import StandIn
from tests.support.served import served


def test_a_story_that_stands_still_ends_and_reports_what_it_saw(
    tmp_path: Path, sqlite_store: Store, free_port: FreePort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "Patience", lambda: Patience(2.0))
    monkeypatch.setattr(story, "BEFORE_USERS", 12)
    config = load_config(None, (f"home={tmp_path}", f"http.port={free_port()}", "loop.min_labels=20"))
    told = io.StringIO()
    narrator = Narrator(Console(file=told, width=140))
    with served(config, sqlite_store, StandIn()) as url:
        report: dict[str, Any] = asyncio.run(
            story.Story(config, {}, TASTES["short"], 0, narrator, url, start_s=1.0).tell()
        )
    assert "nothing has moved" in report["stopped"] or "labels" in report["stopped"]
    assert report["requests"]["failed"] == 0 and not report["promoted"]
    assert report["feedback"]["sent"] == report["feedback"]["stored"] > 0
    assert report["stage_s"]["start"] == 1.0 and report["rounds"] == []
    assert {row["after"] for row in report["answers"]} == {"(not asked)"}
    assert "The sky is blue." in {row["before"] for row in report["answers"]}
    assert report["sanity"]["sane"] is None and "Stopped:" in told.getvalue()


def test_the_questions_follow_from_the_seed() -> None:
    taste = TASTES["short"]
    assert story.questions(taste, 1) == story.questions(taste, 1) != story.questions(taste, 2)
    assert len(story.questions(taste, 1)) == len(story.READERS)


def test_the_plan_is_that_of_the_settings() -> None:
    plan = story.demo_plan(load_config(None, ("loop.min_labels=100", "data.holdout_share=0.5", "kto.micro_batch=4")))
    assert (plan.labels, plan.steps, plan.after) == (100, 14, story.AFTER_USERS)
    assert issubclass(DemoStopped, RuntimeError)
