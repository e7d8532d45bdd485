"""The demo's verdict on finished reports, its interval, and its page. No service is started."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest

from kto_ray.config import Config, ConfigError, read, validated
from kto_ray.demo import page, report
from kto_ray.demo.report import Report
from kto_ray.demo.run import TUNED, demo_config, run_demo
from kto_ray.people.turns import Tally, Turn

CANDIDATE = "policy@v1-3fa9c1"


def turn(i: int, phase: str, adapter: str, up: bool, first: bool = True) -> Turn:
    answer = "Bees make it from nectar." if up else "Honey is a sweet food. It is made by bees. It is"
    return Turn(
        at_s=float(i),
        phase=phase,
        user=f"user-{phase}-{i}",
        prompt="Tell me something <b>interesting</b> about honey.",
        answer=answer,
        adapter=adapter,
        finish_reason="stop" if up else "length",
        reaction="thumb",
        up=up,
        liked=up,
        first=first,
    )


def turns() -> list[Turn]:
    """30 users before with 6 ups, 20 in the A/B test, 40 after with 22 ups; each chats a second time, uncounted."""
    before = [turn(i, "before", "policy@base", i % 5 == 0) for i in range(30)]
    test = [turn(100 + i, "ab", CANDIDATE if i % 2 else "policy@base", i % 2 == 1) for i in range(20)]
    after = [turn(200 + i, "after", CANDIDATE, i < 22) for i in range(40)]
    again = [turn(300 + i, "after", CANDIDATE, True, first=False) for i in range(40)]
    return before + test + after + again


def service_pages() -> tuple[Report, Report, list[Report], Report]:
    """(round, snapshot manifest, adapters, newest rollout) as the service and its files give them."""
    stage_s = {"snapshot": 6.0, "train": 181.5, "load": 2.0, "gate": 31.0, "rollout": 90.0}
    step = {"step": 1, "loss": 0.5, "kl": 0.0, "reward_desirable": 0.01, "reward_undesirable": None}
    train = {"loss_first": 0.5, "loss_last": 0.41, "tokens_per_s": 512.0}
    this = {"id": 1, "outcome": "promoted", "reason": "better", "snapshot": "5ca1ab1e", "adapter": CANDIDATE}
    this |= {
        "rollout": "rollout-1",
        "stage_s": stage_s,
        "train_metrics": train,
        "history": [step, {**step, "step": 2, "loss": 0.41}],
    }
    manifest = {"n_desirable": 61, "n_undesirable": 201, "n_holdout_desirable": 20, "n_holdout_undesirable": 42}
    gate = {
        "decision": "promote-to-canary",
        "reasons": ["it learnt: AUC 0.71"],
        "metrics": {"auc": 0.71, "kl_base": 0.2},
    }
    point = {"stage": 1, "n_champion": 50, "n_challenger": 48, "low": 0.02, "high": 0.6, "at": 1.0}
    rollout: Report = {"id": "rollout-1", "challenger": CANDIDATE, "status": "promoted", "reason": "better"}
    rollout |= {"interval": [0.02, 0.6], "history": [{**point, "stage": 0, "n_champion": 9}, point]}
    return this, manifest, [{"name": CANDIDATE, "gate": gate}], rollout


def good_report(taste: str = "short") -> Report:
    """A report in which everything holds."""
    seen = turns()
    firsts = [t for t in seen if t.first]
    tally = Tally(chat=130, feedback_posts=95, reads=40, thumbs_sent=84, edits_sent=6, resent=5, duplicates=5)
    return {
        "taste": taste,
        "taste_words": "they like <short> answers",
        "seed": 3,
        "rounds": [report.round_record(*service_pages())],
        "thumbs_up_rate": report.rates(
            [t for t in firsts if t.phase == "before"], [t for t in firsts if t.phase == "after"]
        ),
        "requests": report.requests_record(tally),
        "feedback": report.feedback_record(tally, stored=90),
        "stage_s": {"start": 55.0, "before": 80.0, "train": 181.5, "after": 40.0, "total": 500.0},
        "promoted": True,
        "first_champion": "policy@base",
        "champion": CANDIDATE,
        "answered_by_champion": {"answers": 40, "by_champion": 40, "share": 1.0},
        "min_effect": 0.0,
        "sanity": {"sane": True, "decision": "promote-to-canary", "reasons": ["it is sane"], "metrics": {}},
        "answers": [{"question": "1 < 2?", "before": "No & yes", "after": "Yes."}],
        "judgements": report.judgement_records(seen),
        "stopped": None,
        "tuned": TUNED,
        "machine": {**report.machine_record("float32", "no <bf16>"), "answers_per_s": 2.5, "expected_s": 500.0},
    }


def unmet(found: Report) -> list[str]:
    return [condition.words for condition in report.conditions(found) if not condition.met]


def test_newcombe_interval_matches_the_published_example() -> None:
    # Newcombe 1998, table II, example (a): 56/70 - 48/80, method 10
    difference, low, high = report.difference_interval((48, 80), (56, 70))
    assert difference == pytest.approx(0.2)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_interval_covers_zero_for_equal_rates_and_is_wide_without_data() -> None:
    _, low, high = report.difference_interval((10, 50), (10, 50))
    assert low < 0 < high and math.isclose(low, -high)
    _, low, high = report.difference_interval((0, 0), (5, 5))
    assert low <= 0 and high >= 0.5


def test_rates_count_each_users_first_judgement() -> None:
    rate = good_report()["thumbs_up_rate"]
    assert (rate["before"], rate["n_before"]) == (0.2, 30)
    assert (rate["after"], rate["n_after"]) == (0.55, 40)
    assert rate["difference"] == pytest.approx(0.35)
    assert 0 < rate["ci95"][0] < 0.35 < rate["ci95"][1]


def test_rates_without_anybody_after_are_unknown() -> None:
    rate = report.rates([turn(1, "before", "policy@base", True)], [])
    assert rate["after"] is None and rate["difference"] is None and rate["ci95"] is None


def test_round_record_joins_snapshot_gate_and_rollout() -> None:
    found = report.round_record(*service_pages())
    assert (found["n_desirable"], found["n_undesirable"], found["n_holdout"]) == (61, 201, 62)
    assert (found["train_s"], found["loss_first"], found["loss_last"]) == (181.5, 0.5, 0.41)
    assert found["gate"]["decision"] == "promote-to-canary"
    assert (found["rollout"]["decision"], found["rollout"]["n_champion"], found["rollout"]["n_challenger"]) == (
        "promoted",
        50,
        48,
    )


def test_round_record_of_a_round_that_failed_early() -> None:
    this, _, adapters, rollout = service_pages()
    this |= {
        "snapshot": None,
        "adapter": None,
        "rollout": None,
        "outcome": "failed",
        "train_metrics": {},
        "history": [],
        "stage_s": {},
    }
    found = report.round_record(this, None, adapters, rollout)
    assert found["train_s"] is None and found["gate"]["decision"] is None and found["rollout"]["decision"] is None


def test_a_good_report_meets_everything() -> None:
    assert unmet(good_report()) == []


BREAKS = {
    "a phase was too slow": (("stopped",), "phase 'ab' took longer than its 720 s", "phase 'ab'"),
    "rejected": (("rounds", 0, "gate", "decision"), "reject", "the gate says reject"),
    "not won": (("rounds", 0, "rollout", "interval"), [-0.01, 0.6], "[-0.010, +0.600]"),
    "aborted": (("rounds", 0, "rollout", "decision"), "aborted", "the A/B test ended aborted"),
    "not champion": (("champion",), "policy@base", "the champion is policy@base"),
    "served by another": (("answered_by_champion", "share"), 0.9, "fresh answers"),
    "no better": (("thumbs_up_rate", "ci95"), [-0.02, 0.3], "[-0.020, +0.300]"),
    "insane": (("sanity", "sane"), False, "fresh answers, says"),
    "a failure": (("requests", "failed"), 1, "1 of 265 requests failed"),
    "a lost thumb": (("feedback", "stored"), 89, "90 thumbs and edits sent, 89 stored"),
    "a doubled thumb": (("feedback", "duplicates"), 4, "5 were sent twice, 4 recognised"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_broken_promise_is_told_with_its_figure(name: str) -> None:
    path, value, words = BREAKS[name]
    broken = copy.deepcopy(good_report())
    place: Any = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    told = unmet(broken)
    assert len(told) == 1 and words in told[0]


def test_a_report_without_a_round_fails_in_words() -> None:
    empty = {**good_report(), "rounds": []}
    assert "no round was started" in unmet(empty)[0]
    assert "no round was started" in unmet({**empty, "taste": "noise"})[0]


def test_noise_succeeds_exactly_when_a_decision_promoted_nothing() -> None:
    promoted = good_report("noise")
    assert any("nothing may be promoted" in words for words in unmet(promoted))
    ended = {**promoted, "promoted": False, "champion": "policy@base"}
    for outcome in ("rejected", "inconclusive", "aborted"):
        ended["rounds"] = [{**promoted["rounds"][0], "outcome": outcome}]
        assert unmet(ended) == []
    ended["rounds"] = [{**promoted["rounds"][0], "outcome": "failed", "reason": "train: out of memory"}]
    assert any("out of memory" in words for words in unmet(ended))


def test_page_is_self_contained_and_escapes_what_the_model_said() -> None:
    found = good_report()
    html = page.render(found, report.conditions(found))
    assert html.count("data:image/svg+xml;base64,") == 5  # rates, sequence, loss, rewards, stages
    assert "http://" not in html and "https://" not in html and "<script" not in html
    assert "1 &lt; 2?" in html and "No &amp; yes" in html and "they like &lt;short&gt; answers" in html
    assert "class='verdict good'" in html and "it learnt: AUC 0.71" in html


def test_page_of_a_run_that_stopped_early() -> None:
    found = {**good_report(), "rounds": [], "judgements": [], "answers": [], "stopped": "phase 'before' took too long"}
    found["thumbs_up_rate"] = report.rates([], [])
    html = page.render(found, report.conditions(found))
    assert "class='verdict bad'" in html and "phase &#x27;before&#x27; took too long" in html


def test_report_json_is_written_where_asked(tmp_path: Path) -> None:
    path = report.write(good_report(), tmp_path / "demo" / "report.json")
    assert path == tmp_path / "demo" / "report.json" and '"taste": "short"' in path.read_text()


def test_demo_settings_give_way_to_the_users(tmp_path: Path) -> None:
    over = {"kto": {"rank": 4}, "loop": {"min_labels": 99}, "home": "elsewhere"}
    settings = demo_config(over, str(tmp_path), seed=7)
    assert settings.kto.rank == 4 and settings.loop.min_labels == 99 and settings.data.seed == 7
    assert settings.home.startswith(f"{tmp_path}/home-"), "the demo's store is always a fresh one"


def test_what_fits_the_demo_need_not_fit_the_defaults(tmp_path: Path) -> None:
    for key, value in (("gate.guard_prompts", 17), ("rollout.max_users", 100)):
        over = read(None, (f"{key}={value}",))
        with pytest.raises(ConfigError):
            validated(over)
        section, field = key.split(".")
        assert getattr(getattr(demo_config(over, str(tmp_path), seed=7), section), field) == value
        with pytest.raises(ConfigError):
            demo_config(over, str(tmp_path), seed=7, defaults=True)
    with pytest.raises(ConfigError, match="config section 'rollout': min_users is 20, of each arm, and max_users 20"):
        demo_config(read(None, ("rollout.max_users=20",)), str(tmp_path), seed=7)


def test_unknown_taste_is_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="no taste 'sweet'; choose one of short, name, question, noise"):
        run_demo(Config(), "sweet")
