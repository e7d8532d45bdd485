"""The gate's decision on figures: each bound by itself, all reasons at once, and what is not known is not decided."""

from __future__ import annotations

import pytest

from kto_ray.config.deciding import GateSection
from kto_ray.evaluate.gate import REQUIRED, decide
from kto_ray.records.evaluation import GateDecision

CONFIG = GateSection()
GOOD = {
    "n_holdout_desirable": 30.0,
    "n_holdout_undesirable": 40.0,
    "n_holdout_users": 25.0,
    "auc": 0.8,
    "auc_low": 0.7,
    "auc_high": 0.88,
    "auc_gain": 0.1,
    "auc_gain_low": 0.04,
    "auc_gain_high": 0.16,
    "kl_base": 0.2,
    "kl_champion": 0.2,
    "base_nll": 1.1,
    "base_nll_champion": 1.0,
    "length_ratio": 0.6,
    "repetition": 0.0,
    "repetition_champion": 0.05,
    "empty": 0.0,
    "truncated": 0.1,
    "truncated_champion": 0.6,
    "n_checks": 200.0,
    "checks_lost": 12.0,
    "checks_won": 14.0,
    "right_fact": 0.5,
    "right_fact_champion": 0.48,
}


def test_a_sane_candidate_that_learnt_goes_to_the_canary() -> None:
    decision, reasons = decide(CONFIG, GOOD)
    assert decision is GateDecision.PROMOTE_TO_CANARY
    assert (
        "AUC 0.800 (75% interval 0.700 to 0.880) lies above min_auc 0.5 on 70 rows of 25 held-out users" in reasons[0]
    )
    assert "0.100 (75% interval 0.040 to 0.160) lies above min_auc_gain 0" in reasons[1]
    assert reasons[2].startswith("it is sane: KL to base 0.20")
    assert reasons[3] == (
        "it answers no worse: of 200 checks it failed 12 that the champion met, and met 14 that the champion failed "
        "(right: fact 50% against 48%)"
    )


BROKEN = [
    ({"kl_base": CONFIG.max_kl_base + 0.01}, "max_kl_base"),
    ({"kl_champion": CONFIG.max_kl_champion + 0.01}, "max_kl_champion"),
    ({"base_nll": GOOD["base_nll_champion"] + CONFIG.max_base_nll_rise + 0.01}, "max_base_nll_rise"),
    ({"length_ratio": CONFIG.min_length_ratio - 0.01}, "min_length_ratio"),
    ({"length_ratio": CONFIG.max_length_ratio + 0.01}, "max_length_ratio"),
    ({"repetition": GOOD["repetition_champion"] + CONFIG.max_repetition + 0.01}, "max_repetition"),
    ({"empty": CONFIG.max_empty + 0.01}, "max_empty"),
    ({"truncated": 0.9, "truncated_champion": 0.9 - CONFIG.max_truncated_rise - 0.01}, "max_truncated_rise"),
    ({"auc": 0.3, "auc_low": 0.2, "auc_high": 0.45}, "learnt the opposite"),
    ({"auc_gain": -0.1, "auc_gain_low": -0.2, "auc_gain_high": -0.01}, "it is worse than the champion"),
    ({"checks_lost": 30.0, "checks_won": 5.0}, "it answers worse"),
    ({"n_checks": 16.0, "checks_lost": 8.0, "checks_won": 0.0}, "it answers worse"),
]


@pytest.mark.parametrize(("change", "word"), BROKEN)
def test_each_bound_rejects_by_itself(change: dict[str, float], word: str) -> None:
    decision, reasons = decide(CONFIG, GOOD | change)
    assert decision is GateDecision.REJECT
    assert len(reasons) == 1
    assert word in reasons[0]


def test_a_splendid_reward_does_not_save_a_broken_model() -> None:
    broken = GOOD | {"auc": 0.99, "auc_low": 0.97, "auc_high": 1.0, "kl_base": 3.2, "base_nll": 5.0, "repetition": 0.7}
    decision, reasons = decide(CONFIG, broken)
    assert decision is GateDecision.REJECT
    assert len(reasons) == 3
    assert "KL to base 3.20" in reasons[0]
    assert "5.00 nats a token against 1.00" in reasons[1]
    assert "70% of answers repeat themselves against the champion's 5%" in reasons[2]


def test_a_bound_met_exactly_is_kept() -> None:
    edge = {"kl_base": CONFIG.max_kl_base, "length_ratio": CONFIG.max_length_ratio, "empty": CONFIG.max_empty}
    assert decide(CONFIG, GOOD | edge)[0] is GateDecision.PROMOTE_TO_CANARY


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"auc": 0.55, "auc_low": 0.48, "auc_high": 0.62}, "does not lie above min_auc"),
        ({"auc": 0.5, "auc_low": 0.5, "auc_high": 0.5}, "does not lie above min_auc"),
        ({"auc_gain_low": -0.01}, "does not lie above min_auc_gain"),
        ({"auc_gain": 0.0, "auc_gain_low": 0.0, "auc_gain_high": 0.0}, "does not lie above min_auc_gain"),
        ({"n_holdout_desirable": 5.0, "n_holdout_undesirable": 10.0}, "15 held-out rows are fewer than min_holdout 20"),
        ({"n_holdout_desirable": 0.0, "auc_low": 0.0, "auc_high": 1.0}, "no held-out row is desirable"),
        ({"n_holdout_undesirable": 0.0, "auc_low": 0.0, "auc_high": 1.0}, "no held-out row is undesirable"),
        (
            {"n_checks": 16.0, "checks_lost": 1.0, "checks_won": 1.0},
            "fails suite_margin 10% of checks more is not excl",
        ),
        ({"checks_lost": 40.0, "checks_won": 28.0}, "of checks more is not excluded: of 200 checks it failed 40"),
        ({"n_holdout_users": 14.0}, "14 held-out users are fewer than min_holdout_users 15"),
    ],
)
def test_what_is_not_known_is_inconclusive(change: dict[str, float], word: str) -> None:
    decision, reasons = decide(CONFIG, GOOD | change)
    assert decision is GateDecision.INCONCLUSIVE
    assert reasons[0].startswith("cannot tell: ") and word in reasons[0]


def test_too_little_data_never_excuses_a_broken_model() -> None:
    assert decide(CONFIG, GOOD | {"n_holdout_users": 2.0, "kl_base": 9.0})[0] is GateDecision.REJECT


def test_too_little_data_is_no_proof_that_the_opposite_was_learnt() -> None:
    few = GOOD | {"n_holdout_users": 2.0, "auc": 0.1, "auc_low": 0.1, "auc_high": 0.1, "auc_gain_high": -0.2}
    assert decide(CONFIG, few)[0] is GateDecision.INCONCLUSIVE


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_figure_that_is_no_number_rejects(name: str, value: float) -> None:
    decision, reasons = decide(CONFIG, GOOD | {name: value})
    assert decision is GateDecision.REJECT
    assert reasons[0].startswith(f"{name} is ")


def test_nan_in_any_other_figure_rejects_too() -> None:
    decision, reasons = decide(CONFIG, GOOD | {"reward_desirable": float("nan")})
    assert decision is GateDecision.REJECT
    assert reasons == ("reward_desirable is NaN",)


def test_a_missing_figure_is_our_callers_error() -> None:
    with pytest.raises(ValueError, match="auc_low"):
        decide(CONFIG, {k: v for k, v in GOOD.items() if k != "auc_low"})


def test_checks_that_were_not_asked_say_nothing() -> None:
    none = {"n_checks": 0.0, "checks_lost": 0.0, "checks_won": 0.0}
    decision, reasons = decide(CONFIG, GOOD | none)
    assert decision is GateDecision.PROMOTE_TO_CANARY and len(reasons) == 3


def test_a_loss_that_is_sure_and_small_is_within_the_margin() -> None:
    small = GOOD | {"n_checks": 1000.0, "checks_lost": 20.0, "checks_won": 5.0}
    assert decide(CONFIG, small)[0] is GateDecision.PROMOTE_TO_CANARY


def test_a_drift_of_features_is_told_whatever_is_decided() -> None:
    drifted = {"n_guard": 200.0, "flatters": 0.5, "flatters_champion": 0.02}
    words = "drift: 50% of answers flatter, of the champion's 2%"
    for change in ({}, {"kl_base": 9.0}, {"auc_gain_low": -0.1}):
        decision, reasons = decide(CONFIG, GOOD | drifted | change)
        assert reasons[-1] == words and len(reasons) >= 2
        assert decision is decide(CONFIG, GOOD | change)[0], "it decides nothing"


JUDGED = {"judge_win_rate": 0.4, "judge_win_rate_low": 0.3, "judge_win_rate_high": 0.49, "n_judged": 80.0}
JUDGED |= {"judge_ties": 2.0}


def of_judge(least: float | None) -> GateSection:
    return GateSection.model_validate({"judge": {"kind": "rule", "pattern": "x", "min_win_rate": least}})


def test_a_judge_decides_where_its_least_win_rate_is_set() -> None:
    decision, reasons = decide(of_judge(0.5), GOOD | JUDGED)
    assert decision is GateDecision.REJECT
    assert reasons[0].startswith("the judge likes it less: win rate against the champion 0.40 (75% interval 0.30 to")
    decision, reasons = decide(of_judge(0.35), GOOD | JUDGED)
    assert decision is GateDecision.INCONCLUSIVE
    assert reasons[0].startswith("cannot tell: the judge's win rate:")
    assert decide(of_judge(0.3), GOOD | JUDGED)[0] is GateDecision.PROMOTE_TO_CANARY


def test_a_judge_without_a_least_win_rate_is_shown_and_decides_nothing() -> None:
    knows = {"judge_agreement": 0.5, "judge_agreement_low": 0.4, "judge_agreement_high": 0.6, "n_judge_rows": 90.0}
    for change in ({}, {"kl_base": 9.0}, {"auc_gain_low": -0.1}):
        decision, reasons = decide(of_judge(None), GOOD | JUDGED | knows | change)
        assert decision is decide(CONFIG, GOOD | change)[0]
        assert reasons[-2].startswith("judge: win rate against the champion 0.40")
        assert reasons[-1].startswith("this judge does not know this team's taste: its ratings of 90 held-out answers")


def test_a_judge_that_is_away_fails_nothing_and_is_missed_only_where_it_should_decide() -> None:
    away = ("no win rate of the judge: it cannot be reached",)
    decision, reasons = decide(of_judge(None), GOOD, away)
    assert decision is GateDecision.PROMOTE_TO_CANARY and reasons[-1:] == away
    decision, reasons = decide(of_judge(0.5), GOOD, away)
    assert decision is GateDecision.INCONCLUSIVE
    assert reasons == ("cannot tell: the judge's win rate is not known, and min_win_rate is 0.5", *away)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (
            {"n_offpolicy": 0.0, "ess": 0.0},
            "no off-policy estimate: the champion gave none of the held-out answers that users judged",
        ),
        ({"n_offpolicy": 400.0, "ess": 7.4}, "no off-policy estimate: effective sample 7 of 400, not above 100"),
        (
            {"n_offpolicy": 400.0, "ess": 140.2, "offpolicy_gain": -0.2}
            | {"offpolicy_gain_low": -0.3, "offpolicy_gain_high": -0.1},
            "off-policy: its share of thumbs up over the champion's -0.200 (75% interval -0.300 to -0.100), effective "
            "sample 140 of 400",
        ),
    ],
)
def test_an_off_policy_estimate_is_told_or_why_there_is_none_and_decides_nothing(
    figures: dict[str, float], words: str
) -> None:
    for change in ({}, {"kl_base": 9.0}):
        decision, reasons = decide(CONFIG, GOOD | figures | change)
        assert reasons[-1] == words and decision is decide(CONFIG, GOOD | change)[0]
