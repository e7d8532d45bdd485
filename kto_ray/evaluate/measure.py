"""Measures a candidate for the gate: KTO rewards on held-out feedback, and sanity on the candidate's own answers.

Runs inside a Ray task and serves nothing: the caller fetches the guard answers over HTTP from the loaded candidate and
the champion (sampled as users get them) and passes them in.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kto_ray.config import Config
from kto_ray.evaluate import features, gate, ranks
from kto_ray.evaluate.texts import length_ratio, looks_truncated, repeats_itself
from kto_ray.records.evaluation import GateReport, GuardAnswer, HeldOut, Opinion, Tokens
from kto_ray.stats.offpolicy import effective_sample, gain
from kto_ray.stats.ranking import balanced_accuracy, bootstrap

if TYPE_CHECKING:  # torch is imported only where a model is loaded
    from kto_ray.evaluate.logprobs import Scorer

KEPT = 32  # pairs of answers in a report, which is a row of the store and a part of pages
NO_OPINION = Opinion()
Floats = NDArray[np.float64]
KL_PAIRS = 32  # mismatched pairs for the KL point; training estimates it from a micro-batch of 4 to 8


def evaluate(
    config: Config,
    adapter: str,
    snapshot: str,
    model_path: str,
    adapter_dir: str,
    champion_dir: str | None,
    rows: Sequence[HeldOut],
    candidate: Sequence[GuardAnswer],
    champion: Sequence[GuardAnswer],
    now: float,
    served_as: str = "",
    opinion: Opinion = NO_OPINION,
) -> GateReport:
    """Measure and decide: `score`, then `gate.decide`.

    `champion_dir` is None where the champion is the base model; `served_as` is the champion's name, and `opinion` what
    a judge thinks.
    """
    figures = score(config, model_path, adapter_dir, champion_dir, rows, candidate, champion, served_as)
    metrics = {**figures, **opinion.figures}
    decision, reasons = gate.decide(config.gate, metrics, opinion.lacking)
    known = {name: value for name, value in metrics.items() if math.isfinite(value)}  # the reasons name the others
    return GateReport(adapter, snapshot, now, decision, reasons, known, shown(candidate, champion))


def shown(candidate: Sequence[GuardAnswer], champion: Sequence[GuardAnswer]) -> tuple[dict[str, str], ...]:
    """The pairs of answers that a report keeps, at most KEPT: what was lost first, then the others in their order."""
    pairs = sorted(zip(candidate, champion, strict=True), key=lambda pair: not (pair[1].right and not pair[0].right))
    kept = []
    for new, old in pairs[:KEPT]:
        entry = {"prompt": new.prompt, "champion": old.text, "candidate": new.text}
        if new.right is not None:
            right = {(True, True): "both", (True, False): "candidate", (False, True): "champion"}
            entry |= {"tag": new.tag, "right": right.get((new.right, bool(old.right)), "neither")}
        kept.append(entry)
    return tuple(kept)


def score(
    config: Config,
    model_path: str,
    adapter_dir: str,
    champion_dir: str | None,
    rows: Sequence[HeldOut],
    candidate: Sequence[GuardAnswer],
    champion: Sequence[GuardAnswer],
    served_as: str = "",
) -> dict[str, float]:
    """Every figure of the gate's report, from forward passes in the served precision.

    Args:
        rows: held-out feedback; above `gate.max_holdout` rows a fixed random subset is scored.
        candidate, champion: answers to the same guard prompts, in the same order.
        served_as: the champion's name, by which rows say that it answered.

    Raises:
        ValueError: no guard answers, or they are not to the same prompts; an adapter's folder is incomplete.
    """
    if not candidate or [a.messages for a in candidate] != [a.messages for a in champion]:
        raise ValueError(
            f"the gate compares answers to the same guard prompts, got {len(candidate)} of the candidate and "
            f"{len(champion)} of the champion; ask both the same prompts, in the same order"
        )
    from kto_ray.evaluate.logprobs import Scorer

    scorer = Scorer(config, model_path, adapter_dir, champion_dir)
    return {
        **reward_metrics(config, scorer, _subset(rows, config.gate.max_holdout, config.data.seed), served_as),
        **guard_metrics(scorer, candidate, champion),
        **check_metrics(candidate, champion),
    }


def reward_metrics(config: Config, scorer: Scorer, rows: Sequence[HeldOut], served_as: str = "") -> dict[str, float]:
    """KTO's implied reward r = beta (log p_candidate - log p_base) of held-out answers, and how well it tells the
    desirable from the undesirable (Ethayarajh et al. 2024, eq. 7 and 8).

    Balanced accuracy is taken at the KL point z0 = beta max(0, mean of log p_candidate - log p_base over mismatched
    pairs), which is where KTO's value function turns. Without a row of each class nothing is known: AUC 0.5 in (0, 1).
    What the figures of `ranks.ranking` say stands there, and what those of `off_policy` say, here.
    """
    good = [row for row in rows if row.desirable]
    counts = {
        "n_holdout_desirable": float(len(good)),
        "n_holdout_undesirable": float(len(rows) - len(good)),
        "n_holdout_users": float(len({row.user for row in rows})),
    }
    if not 0 < len(good) < len(rows):
        return counts | ranks.unknown()
    beta, tokens = config.kto.beta, [row.tokens for row in rows]
    base = scorer.logprobs("base", tokens)
    rewards = beta * (scorer.logprobs("candidate", tokens) - base)
    old = beta * (scorer.logprobs("champion", tokens) - base) if scorer.has_champion else np.zeros(len(rows))
    kl_point = _kl_point(beta, scorer, rows, config.data.seed)
    labels, users = np.array([row.desirable for row in rows]), [row.user for row in rows]
    lengths = np.array([float(len(row.tokens.completion)) for row in rows])
    up, down = rewards[labels], rewards[~labels]
    _, bounds = bootstrap(rewards, labels, users, kl_point, config.gate.confidence, config.gate.bootstrap)
    return {
        **counts,
        **ranks.ranking(config.gate, rewards, old, labels, users, lengths),
        **ranks.with_interval("balanced_accuracy", balanced_accuracy(up, down, kl_point), bounds),
        "reward_desirable": float(up.mean()),
        "reward_undesirable": float(down.mean()),
        "kl_point": kl_point,
        **off_policy(config, rows, (rewards - old) / beta, served_as),
    }


def off_policy(config: Config, rows: Sequence[HeldOut], log_ratios: Floats, served_as: str) -> dict[str, float]:
    """ess: the effective sample that importance weights leave of the champion's own answers (`stats.offpolicy`), of
    n_offpolicy. offpolicy_gain: where that is enough, how many more thumbs up the candidate would have got of them.

    The weights are of whole answers at temperature 1, whatever users were served at. Of those that were cut to fit, the
    tokens are not all that was said: they are left out.

    Args:
        log_ratios: log p_candidate - log p_champion of each row's answer.
    """
    whole = config.data.max_length
    own = [i for i, r in enumerate(rows) if r.adapter == served_as and r.of_served and r.tokens.length < whole]
    logs = log_ratios[own]
    counts = {"n_offpolicy": float(len(own)), "ess": effective_sample(logs)}
    liked, users = [float(rows[i].desirable) for i in own], [rows[i].user for i in own]
    found = gain(logs, liked, users, config.gate.confidence)
    return counts if found is None else counts | ranks.with_interval("offpolicy_gain", found.value, found.bounds)


def guard_metrics(
    scorer: Scorer, candidate: Sequence[GuardAnswer], champion: Sequence[GuardAnswer]
) -> dict[str, float]:
    """Sanity on the guard answers.

    kl_base, kl_champion: mean over the candidate's own answer tokens of log p_candidate - log p_other, the on-policy
    estimate of KL(candidate || other) in nats a token. base_nll(_champion): what a token of the candidate's (the
    champion's) answers costs under the base model, in nats; gibberish is dear. Shares are of answers; lengths are in
    tokens.
    """
    new = [answer.tokens for answer in candidate]
    old = [answer.tokens for answer in champion]
    own = scorer.logprobs("candidate", new)
    base, base_of_old = scorer.logprobs("base", new), scorer.logprobs("base", old)
    under_champion = scorer.logprobs("champion", new) if scorer.has_champion else base
    new_lengths, old_lengths = [len(t.completion) for t in new], [len(t.completion) for t in old]
    size, old_size = max(sum(new_lengths), 1), max(sum(old_lengths), 1)
    return {
        "n_guard": float(len(candidate)),
        "kl_base": float(np.sum(own - base) / size),
        "kl_champion": float(np.sum(own - under_champion) / size),
        "base_nll": float(-np.sum(base) / size),
        "base_nll_champion": float(-np.sum(base_of_old) / old_size),
        "length": float(np.mean(new_lengths)),
        "length_ratio": length_ratio(new_lengths, old_lengths),
        **text_metrics(candidate),
        **{f"{name}_champion": value for name, value in text_metrics(champion).items()},
    }


def check_metrics(candidate: Sequence[GuardAnswer], champion: Sequence[GuardAnswer]) -> dict[str, float]:
    """How many checks the candidate lost to the champion and won from it, and the weighted shares of right answers of
    both, over all and by tag. Needs no model."""
    pairs = [(new, old) for new, old in zip(candidate, champion, strict=True) if new.right is not None]
    found = {
        "n_checks": float(len(pairs)),
        "checks_lost": float(sum(bool(old.right and not new.right) for new, old in pairs)),
        "checks_won": float(sum(bool(new.right and not old.right) for new, old in pairs)),
    }
    if pairs:
        found |= _right("right", pairs)
    for tag in dict.fromkeys(new.tag for new, _ in pairs):
        found |= _right(f"right_{tag}", [pair for pair in pairs if pair[0].tag == tag])
    return found


def _right(name: str, pairs: Sequence[tuple[GuardAnswer, GuardAnswer]]) -> dict[str, float]:
    weight = sum(new.weight for new, _ in pairs)
    new, old = (sum(pair[side].weight * bool(pair[side].right) for pair in pairs) / weight for side in (0, 1))
    return {name: new, f"{name}_champion": old}


def text_metrics(answers: Sequence[GuardAnswer]) -> dict[str, float]:
    """Shares of answers that repeat themselves, are empty, or are cut off, and those of `features`. Needs no model."""
    return {
        "repetition": float(np.mean([repeats_itself(a.text) for a in answers])),
        "empty": float(np.mean([not a.text.strip() for a in answers])),
        "truncated": float(np.mean([looks_truncated(a.finish_reason, a.text) for a in answers])),
        **features.shares(answers),
    }


def _kl_point(beta: float, scorer: Scorer, rows: Sequence[HeldOut], seed: int) -> float:
    order = random.Random(seed).sample([row.tokens for row in rows], k=min(len(rows), KL_PAIRS))
    pairs = [Tokens(row.prompt, other.completion) for row, other in zip(order, order[1:] + order[:1], strict=True)]
    ratios: NDArray[np.float64] = scorer.logprobs("candidate", pairs) - scorer.logprobs("base", pairs)
    return float(beta * np.maximum(ratios.mean(), 0.0))  # np.maximum keeps a NaN


def _subset(rows: Sequence[HeldOut], most: int, seed: int) -> Sequence[HeldOut]:
    if len(rows) <= most:
        return rows
    return random.Random(seed).sample(sorted(rows, key=lambda row: row.example_id), k=most)
