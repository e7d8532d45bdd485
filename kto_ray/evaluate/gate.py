"""The gate: measured figures in, a decision with its reasons out. Pure; the thresholds are config.GateSection.

A candidate must be sane and must have learnt. Sanity is bounded, not maximised: KTO pushed too hard wins a taste
by breaking the model, and then its reward on held-out answers is splendid while its own answers are gibberish. That is
why every sanity figure is taken on the candidate's OWN answers to plain prompts.

The gate only admits to a canary; that the candidate is better is for the A/B test to say.

What the thresholds mean:
    min_auc              AUC of the KTO reward on held-out users; its interval must lie above
    min_auc_gain         that AUC among answers of like length, over the champion's on the same rows; the interval of
                         the difference must lie above. A candidate no better than the champion gets by with chance
                         (1 - confidence) / 2, and then still has to win the A/B
    max_kl_base          nats a token of its own answers; bounds what many rounds may add up to
    max_kl_champion      the same against the present champion; bounds one round
    max_base_nll_rise    nats a token; gibberish is dear under the base model, whatever the reward says of it
    max_repetition, max_truncated_rise    rises of shares over the champion's on the same prompts, since a small model
                         repeats itself and gets cut off already
    max_empty            a share, not a rise: with 16 prompts one empty answer rejects
    min_, max_length_ratio    mean length over the champion's; wide, because length may be the very taste
    suite_margin         of the guard suites' checks (is the answer right?), on pairs of answers to the same prompt:
                         that it fails so many more than the champion must be excluded at suite_level. It is rejected
                         where it is surely worse (same level) and perhaps by the margin; else nobody can tell

    judge.min_win_rate   where a team sets it: surely below it is rejected; not surely above it, nobody can tell

What thumbs reward and nobody asked for (asking back, flattery, emoji) is told as drift and decides nothing; nor does
the off-policy estimate, nor a judge without `min_win_rate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kto_ray.config.deciding import GateSection
from kto_ray.evaluate import features, opinion
from kto_ray.records.evaluation import GateDecision
from kto_ray.stats.exact import much_worse, worse
from kto_ray.stats.offpolicy import LEAST

# What measure.score measures and this module reads.
REQUIRED = (
    "n_holdout_desirable",
    "n_holdout_undesirable",
    "n_holdout_users",
    "auc",
    "auc_low",
    "auc_high",
    "auc_gain",
    "auc_gain_low",
    "auc_gain_high",
    "kl_base",
    "kl_champion",
    "base_nll",
    "base_nll_champion",
    "length_ratio",
    "repetition",
    "repetition_champion",
    "empty",
    "truncated",
    "truncated_champion",
    "n_checks",
    "checks_lost",
    "checks_won",
)


def decide(
    config: GateSection, metrics: Mapping[str, float], lacking: Sequence[str] = ()
) -> tuple[GateDecision, tuple[str, ...]]:
    """The gate's decision and its reasons, each with the figure and the threshold; behind them what decides nothing.

    reject: a figure is not a number, a sanity bound is broken, it fails checks that the champion meets, or AUC's upper
    bound lies below min_auc (it learnt the opposite) or that of its gain below min_auc_gain (it is worse than the
    champion). All such reasons are given.
    inconclusive, whose reason begins with "cannot tell": sane, but too little held out, or an interval includes its
    threshold. promote-to-canary: otherwise.

    Args:
        lacking: in words, which figures of a judge are absent, and why.

    Raises:
        ValueError: a figure is missing from `metrics`.
    """
    missing = [name for name in REQUIRED if name not in metrics]
    if missing:
        raise ValueError(f"the gate needs the metrics {', '.join(missing)}; got only {', '.join(sorted(metrics))}")
    wrong = [f"{name} is {metrics[name]}, not a finite number" for name in REQUIRED if not math.isfinite(metrics[name])]
    wrong += [f"{name} is NaN" for name in metrics if name not in REQUIRED and math.isnan(metrics[name])]
    if wrong:
        return GateDecision.REJECT, tuple(wrong)
    scarce, told = _too_little_data(config, metrics), _told(config, metrics, lacking)
    fails, unsure = _checks(config, metrics)
    disliked, undecided = opinion.against(config, metrics)
    broken = [*_insane(config, metrics), *fails, *disliked, *([] if scarce else _worse(config, metrics))]
    if broken:
        return GateDecision.REJECT, (*broken, *told)
    unknown = [*(scarce or _not_shown(config, metrics)), *unsure, *undecided]
    if unknown:
        return GateDecision.INCONCLUSIVE, (f"cannot tell: {'; '.join(unknown)}", *told)
    return GateDecision.PROMOTE_TO_CANARY, (*_praise(config, metrics), *told)


def _told(config: GateSection, m: Mapping[str, float], lacking: Sequence[str]) -> tuple[str, ...]:
    """What decides nothing, in words."""
    return (*features.drift(m), *opinion.words(config, m), *lacking, *_off_policy(config, m))


def _off_policy(config: GateSection, m: Mapping[str, float]) -> tuple[str, ...]:
    """What held-out answers of the champion say by their importance weights, or why nothing."""
    if "n_offpolicy" not in m:
        return ()
    if m["n_offpolicy"] == 0:
        return ("no off-policy estimate: the champion gave none of the held-out answers that users judged",)
    sample = f"effective sample {m['ess']:.0f} of {m['n_offpolicy']:.0f}"
    if "offpolicy_gain" not in m:
        return (f"no off-policy estimate: {sample}, not above {LEAST:g}",)
    gained = _in_words(config, m, "offpolicy_gain")
    return (f"off-policy: its share of thumbs up over the champion's {gained}, {sample}",)


def _worse(config: GateSection, m: Mapping[str, float]) -> list[str]:
    """What held-out users surely say against it."""
    reasons = []
    if m["auc_high"] < config.min_auc:
        reasons.append(
            f"it learnt the opposite: AUC {_in_words(config, m, 'auc')} lies below min_auc {config.min_auc:g}"
        )
    if m["auc_gain_high"] < config.min_auc_gain:
        reasons.append(
            f"it is worse than the champion: the gain of AUC {_in_words(config, m, 'auc_gain')} lies below "
            f"min_auc_gain {config.min_auc_gain:g}"
        )
    return reasons


def _not_shown(config: GateSection, m: Mapping[str, float]) -> list[str]:
    """What held-out users do not say surely."""
    reasons = []
    if m["auc_low"] <= config.min_auc:
        reasons.append(f"AUC {_in_words(config, m, 'auc')} does not lie above min_auc {config.min_auc:g}")
    if m["auc_gain_low"] <= config.min_auc_gain:
        reasons.append(
            f"the gain of AUC over the champion, {_in_words(config, m, 'auc_gain')}, does not lie above min_auc_gain "
            f"{config.min_auc_gain:g}"
        )
    return reasons


def _too_little_data(config: GateSection, metrics: Mapping[str, float]) -> list[str]:
    good, bad = metrics["n_holdout_desirable"], metrics["n_holdout_undesirable"]
    reasons = []
    if good + bad < config.min_holdout:
        reasons.append(f"{good + bad:.0f} held-out rows are fewer than min_holdout {config.min_holdout}")
    if min(good, bad) == 0:
        lacking = "desirable" if good == 0 else "undesirable"
        reasons.append(f"no held-out row is {lacking}, so nothing can be compared")
    if metrics["n_holdout_users"] < config.min_holdout_users:
        users = metrics["n_holdout_users"]
        reasons.append(f"{users:.0f} held-out users are fewer than min_holdout_users {config.min_holdout_users}")
    return reasons


def _insane(config: GateSection, m: Mapping[str, float]) -> list[str]:
    """The sanity bounds that are broken, in words."""
    return [reason for broken, reason in (*_distances(config, m), *_texts(config, m)) if broken]


def _checks(config: GateSection, m: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """What the checks of the guard prompts surely say against it, and what they do not say surely."""
    items, lost, won = (int(m[name]) for name in ("n_checks", "checks_lost", "checks_won"))
    if items == 0:
        return [], []
    if much_worse(lost, won, items, config.suite_margin) <= config.suite_level:
        return [], []
    if worse(lost, won) <= config.suite_level:
        return [
            f"it answers worse: {_checks_in_words(m)}, which is no chance (p {worse(lost, won):.1g}), and that it "
            f"fails suite_margin {config.suite_margin:.0%} more is not excluded"
        ], []
    return [], [
        f"that it fails suite_margin {config.suite_margin:.0%} of checks more is not excluded: {_checks_in_words(m)}"
    ]


def _checks_in_words(m: Mapping[str, float]) -> str:
    return (
        f"of {m['n_checks']:.0f} checks it failed {m['checks_lost']:.0f} that the champion met, and met "
        f"{m['checks_won']:.0f} that the champion failed{_tags_in_words(m)}"
    )


def _tags_in_words(m: Mapping[str, float]) -> str:
    """The shares of right answers by tag, where there are such."""
    names = [name for name in m if name.startswith("right_") and f"{name}_champion" in m]
    told = [f"{name.removeprefix('right_')} {m[name]:.0%} against {m[f'{name}_champion']:.0%}" for name in names]
    return f" (right: {', '.join(told)})" if told else ""


def _distances(config: GateSection, m: Mapping[str, float]) -> list[tuple[bool, str]]:
    """How far its own answers are from what base and champion would say."""
    return [
        (
            m["kl_base"] > config.max_kl_base,
            f"KL to base {m['kl_base']:.2f} nats a token exceeds max_kl_base {config.max_kl_base:g}",
        ),
        (
            m["kl_champion"] > config.max_kl_champion,
            f"KL to the champion {m['kl_champion']:.2f} nats a token exceeds "
            f"max_kl_champion {config.max_kl_champion:g}",
        ),
        (
            m["base_nll"] - m["base_nll_champion"] > config.max_base_nll_rise,
            f"the base model finds its answers odd: {m['base_nll']:.2f} nats a token against "
            f"{m['base_nll_champion']:.2f} for the champion's, a rise above max_base_nll_rise "
            f"{config.max_base_nll_rise:g}",
        ),
    ]


def _texts(config: GateSection, m: Mapping[str, float]) -> list[tuple[bool, str]]:
    """How its own answers look."""
    length, repetition, truncated = m["length_ratio"], m["repetition"], m["truncated"]
    return [
        (
            length < config.min_length_ratio,
            f"answers are {length:.2f} times as long as the champion's, below "
            f"min_length_ratio {config.min_length_ratio:g}",
        ),
        (
            length > config.max_length_ratio,
            f"answers are {length:.2f} times as long as the champion's, above "
            f"max_length_ratio {config.max_length_ratio:g}",
        ),
        (
            repetition - m["repetition_champion"] > config.max_repetition,
            f"{repetition:.0%} of answers repeat themselves against the champion's {m['repetition_champion']:.0%}, "
            f"a rise above max_repetition {config.max_repetition:.0%}",
        ),
        (
            m["empty"] > config.max_empty,
            f"{m['empty']:.0%} of answers are empty, above max_empty {config.max_empty:.0%}",
        ),
        (
            truncated - m["truncated_champion"] > config.max_truncated_rise,
            f"{truncated:.0%} of answers are cut off against the champion's {m['truncated_champion']:.0%}, "
            f"a rise above max_truncated_rise {config.max_truncated_rise:.0%}",
        ),
    ]


def _praise(config: GateSection, m: Mapping[str, float]) -> tuple[str, ...]:
    rows = m["n_holdout_desirable"] + m["n_holdout_undesirable"]
    checked = (f"it answers no worse: {_checks_in_words(m)}",) if m["n_checks"] else ()
    return (
        f"it learnt: AUC {_in_words(config, m, 'auc')} lies above min_auc {config.min_auc:g} on {rows:.0f} rows of "
        f"{m['n_holdout_users']:.0f} held-out users",
        f"it gained: AUC over the champion's {_in_words(config, m, 'auc_gain')} lies above min_auc_gain "
        f"{config.min_auc_gain:g}",
        f"it is sane: KL to base {m['kl_base']:.2f} nats a token (at most {config.max_kl_base:g}), base NLL "
        f"{m['base_nll']:.2f} against {m['base_nll_champion']:.2f}, length {m['length_ratio']:.2f} times, "
        f"{m['repetition']:.0%} repeat themselves, {m['empty']:.0%} empty, {m['truncated']:.0%} cut off",
        *checked,
    )


def _in_words(config: GateSection, m: Mapping[str, float], name: str) -> str:
    return f"{m[name]:.3f} ({config.confidence:.0%} interval {m[f'{name}_low']:.3f} to {m[f'{name}_high']:.3f})"
