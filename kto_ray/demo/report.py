"""What the demo found: the figures, the conditions they must meet, and report.json.

Everything but `write` is a pure function of records; the verdict reads the finished report, so that anybody can check
a report.json by hand.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kto_ray.people.turns import Tally, Turn
from kto_ray.processor import here

Report = dict[str, Any]  # the shape of report.json, which `build` writes out once
DECIDED = ("promoted", "rejected", "inconclusive", "aborted")  # ends of a round that somebody decided
METHOD = "Newcombe's hybrid score interval (1998, method 10) on each user's first judgement; an edit counts as not up"


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that the demo demands: whether it holds, in words with its figure."""

    met: bool
    words: str


def wilson(up: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share (E. B. Wilson, 1927); (0, 1) without observations."""
    if n == 0:
        return 0.0, 1.0
    share, square = up / n, z * z / n
    middle, half = share + square / 2, z * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def difference_interval(before: tuple[int, int], after: tuple[int, int]) -> tuple[float, float, float]:
    """(difference, low, high) of two independent shares, after - before, each given as (up, n); 95%.

    R. G. Newcombe, "Interval estimation for the difference between independent proportions", Statistics in Medicine 17
    (1998), method 10: each side's distance to its Wilson limits, added in squares.
    """
    (up0, n0), (up1, n1) = before, after
    p0, p1 = up0 / n0 if n0 else 0.5, up1 / n1 if n1 else 0.5
    (low0, high0), (low1, high1) = wilson(up0, n0), wilson(up1, n1)
    difference = p1 - p0
    return difference, difference - math.hypot(p1 - low1, high0 - p0), difference + math.hypot(high1 - p1, p0 - low0)


def rates(before: Sequence[Turn], after: Sequence[Turn]) -> Report:
    """The thumbs-up rates of two sets of first judgements; None where nobody judged."""
    up0, up1 = sum(bool(t.up) for t in before), sum(bool(t.up) for t in after)
    found: Report = {
        "before": up0 / len(before) if before else None,
        "after": up1 / len(after) if after else None,
        "difference": None,
        "ci95": None,
        "method": METHOD,
        "up_before": up0,
        "n_before": len(before),
        "up_after": up1,
        "n_after": len(after),
        "truly_liked_before": _share([t.liked for t in before]),
        "truly_liked_after": _share([t.liked for t in after]),
    }
    if before and after:
        difference, low, high = difference_interval((up0, len(before)), (up1, len(after)))
        found.update(difference=difference, ci95=[low, high])
    return found


def _share(flags: Sequence[bool | None]) -> float | None:
    known = [flag for flag in flags if flag is not None]
    return sum(known) / len(known) if known else None


def answered_by(champion: str | None, fresh: Sequence[Turn]) -> Report:
    """How many of these answers the champion gave."""
    by_champion = sum(turn.adapter == champion for turn in fresh)
    share = by_champion / len(fresh) if fresh else None
    return {"answers": len(fresh), "by_champion": by_champion, "share": share}


def feedback_record(tally: Tally, stored: int) -> Report:
    """What was sent (distinct thumbs and edits) against what the service says it stored."""
    return {
        "sent": tally.thumbs_sent + tally.edits_sent,
        "stored": stored,
        "duplicates": tally.duplicates,
        "resent": tally.resent,
        "thumbs": tally.thumbs_sent,
        "edits": tally.edits_sent,
        "pending": tally.pending,
    }


def requests_record(tally: Tally) -> Report:
    return {
        "total": tally.total,
        "failed": len(tally.failures),
        "chat": tally.chat,
        "chat_streamed": tally.streamed,
        "feedback": tally.feedback_posts,
        "reads": tally.reads,
        "failures": tally.failures[:20],
    }


def machine_record(dtype: str, why: str) -> Report:
    """Where the demo ran; times without it mean little."""
    processor = here()
    return {
        "processor": processor.name,
        "instructions": list(processor.instructions),
        "cores": len(os.sched_getaffinity(0)),
        "dtype": dtype,
        "dtype_why": why,
    }


def round_record(page: Report, snapshot: Report | None, adapters: Sequence[Report], newest: Report | None) -> Report:
    """One round of GET /v1/loop/rounds/N, joined with its snapshot's manifest, its adapter's gate and its rollout.

    `newest` is the newest rollout of GET /v1/rollout, the one that comes with its history.
    """
    entry = next((a for a in adapters if a["name"] == page["adapter"]), None) if page["adapter"] else None
    gate = (entry or {}).get("gate") or {}
    rollout = newest if newest is not None and newest["id"] == page["rollout"] else None
    last = rollout["history"][-1] if rollout and rollout["history"] else {}
    train = page.get("train_metrics") or {}
    counted = snapshot or {}
    return {
        "id": page["id"],
        "outcome": page["outcome"],
        "reason": page["reason"],
        "snapshot": page["snapshot"],
        "n_desirable": counted.get("n_desirable"),
        "n_undesirable": counted.get("n_undesirable"),
        "n_holdout": counted.get("n_holdout_desirable", 0) + counted.get("n_holdout_undesirable", 0),
        "adapter": page["adapter"],
        "train_s": (page.get("stage_s") or {}).get("train"),
        "loss_first": train.get("loss_first"),
        "loss_last": train.get("loss_last"),
        "tokens_per_s": train.get("tokens_per_s"),
        "train_history": list(page.get("history") or []),
        "stage_s": dict(page.get("stage_s") or {}),
        "gate": {
            "decision": gate.get("decision"),
            "reasons": list(gate.get("reasons") or []),
            "metrics": dict(gate.get("metrics") or {}),
        },
        "rollout": {
            "decision": rollout["status"] if rollout else None,
            "reason": rollout["reason"] if rollout else None,
            "n_champion": last.get("n_champion", 0),
            "n_challenger": last.get("n_challenger", 0),
            "interval": rollout["interval"] if rollout else None,
            "history": list(rollout["history"]) if rollout else [],
        },
    }


def judgement_records(turns: Sequence[Turn]) -> list[Report]:
    """The first judgements, for the page's timeline."""
    kept = ("at_s", "phase", "adapter", "up", "reaction")
    return [{k: v for k, v in asdict(t).items() if k in kept} for t in turns if t.first]


def conditions(report: Report) -> list[Condition]:
    """What must hold for exit code 0, each in words with its figure. Pure: reads the report only."""
    first = report["rounds"][0] if report["rounds"] else None
    finished = Condition(report["stopped"] is None, report["stopped"] or "every phase came to its end")
    own = _nothing_promoted(report, first) if report["taste"] == "noise" else _promoted_and_better(report, first)
    return [finished, *own, *_nothing_dropped_or_lost(report)]


def _promoted_and_better(report: Report, first: Report | None) -> list[Condition]:
    if first is None:
        return [Condition(False, "no round was started: the labels did not reach loop.min_labels")]
    gate, rollout = first["gate"], first["rollout"]
    because = "; ".join(gate["reasons"]) or first["reason"] or "no reason given"
    interval = rollout["interval"]
    seen = f"{rollout['n_champion']} users of the champion, {rollout['n_challenger']} of the challenger"
    won = rollout["decision"] == "promoted" and interval is not None and interval[0] > report["min_effect"]
    rate, sane = report["thumbs_up_rate"], report["sanity"]
    rose = rate["ci95"] is not None and rate["ci95"][0] > 0
    served = report["answered_by_champion"]
    crowned = first["adapter"] is not None and report["champion"] == first["adapter"]
    return [
        Condition(gate["decision"] == "promote-to-canary", f"the gate says {gate['decision'] or 'nothing'}: {because}"),
        Condition(
            won,
            f"the A/B test ended {rollout['decision'] or 'before it began'} ({seen}); the sequence's interval of the "
            f"difference is {_span(interval)}, whose lower end must lie above {report['min_effect']:g}",
        ),
        Condition(
            crowned and served["share"] == 1.0,
            f"the champion is {report['champion']}, the candidate was {first['adapter']}; the champion gave "
            f"{served['by_champion']} of {served['answers']} fresh answers",
        ),
        Condition(
            rose,
            f"thumbs-up rate {_percent(rate['before'])} before ({rate['n_before']} users), {_percent(rate['after'])} "
            f"after ({rate['n_after']} fresh users); 95% interval of the difference {_span(rate['ci95'])}, "
            "whose lower end must lie above 0",
        ),
        Condition(
            sane["sane"] is True,
            f"the gate, asked again about the champion's fresh answers, says {sane['decision'] or 'nothing'}: "
            + ("; ".join(sane["reasons"]) or "they were not examined"),
        ),
    ]


def _nothing_promoted(report: Report, first: Report | None) -> list[Condition]:
    if first is None:
        return [Condition(False, "no round was started: the labels did not reach loop.min_labels")]
    because = (
        "; ".join(first["gate"]["reasons"]) if first["outcome"] in ("rejected", "inconclusive") else first["reason"]
    )
    return [
        Condition(
            first["outcome"] in DECIDED,
            f"the round ended {first['outcome'] or 'nowhere'}, by decision: {because or 'no reason given'}",
        ),
        Condition(
            not report["promoted"],
            f"the thumbs were random, so nothing may be promoted; the champion is {report['champion']}",
        ),
    ]


def _nothing_dropped_or_lost(report: Report) -> list[Condition]:
    requests, feedback = report["requests"], report["feedback"]
    first = f"; the first: {requests['failures'][0]}" if requests["failures"] else ""
    return [
        Condition(
            requests["failed"] == 0 and requests["chat"] > 0,
            f"{requests['failed']} of {requests['total']} requests failed{first}",
        ),
        Condition(
            feedback["sent"] == feedback["stored"] and feedback["sent"] > 0 and feedback["pending"] == 0,
            f"{feedback['sent']} thumbs and edits sent, {feedback['stored']} stored, {feedback['pending']} of them "
            "acknowledged as pending",
        ),
        Condition(
            feedback["duplicates"] == feedback["resent"],
            f"{feedback['resent']} were sent twice, {feedback['duplicates']} recognised as duplicates",
        ),
    ]


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.1f}%"


def _span(interval: Sequence[float] | None) -> str:
    return "not measured" if interval is None else f"[{interval[0]:+.3f}, {interval[1]:+.3f}]"


def write(report: Report, path: Path) -> Path:
    """Write a report (report.json with its rows of history) to a file; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, default=str) + "\n")
    return path
