"""How well a candidate's rewards tell the desirable from the undesirable, alone and against its champion's. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kto_ray.config.deciding import GateSection
from kto_ray.stats.ranking import Interval, auc, bootstrap, paired, strata

Floats = NDArray[np.float64]


def ranking(
    section: GateSection,
    candidate: Floats,
    champion: Floats,
    desirable: NDArray[np.bool_],
    users: Sequence[str],
    lengths: Floats,
) -> dict[str, float]:
    """The gate's figures on rewards of held-out answers.

    auc: of the candidate; auc_champion: of the champion, on the same rows. auc_alike(_champion): the same among answers
    of like length, and auc_gain, their difference, with the interval of a paired bootstrap over users. auc_length: of
    length alone, below one half where the shorter are liked; length_strata: how many groups of like length there are.

    Why like length: ups and downs differ in length anyway, so a policy that merely drifted along length, which any
    training does, would tell them apart and have learnt nothing. Only where length is so clearly what users judge by
    (GateSection.length_taste) that it must be the taste itself is it left in.

    Args:
        champion: its rewards; all 0 for the base model.
        lengths: of the answers, in tokens.
    """
    up, seen = candidate[desirable], (section.confidence, section.bootstrap)
    raw, _ = bootstrap(candidate, desirable, users, 0.0, *seen)
    by_length, _ = bootstrap(lengths, desirable, users, 0.0, *seen)
    is_taste = by_length.low > 0.5 + section.length_taste or by_length.high < 0.5 - section.length_taste
    stratum = strata(lengths, 1 if is_taste else section.length_strata)
    both = paired(candidate, champion, desirable, users, stratum, *seen)
    return {
        **with_interval("auc", auc(up, candidate[~desirable]), raw),
        "auc_champion": auc(champion[desirable], champion[~desirable]),
        "auc_alike": both.candidate,
        "auc_alike_champion": both.champion,
        **with_interval("auc_gain", both.gain, both.gain_bounds),
        **with_interval("auc_length", auc(lengths[desirable], lengths[~desirable]), by_length),
        "length_strata": float(stratum.max() + 1),
    }


def unknown() -> dict[str, float]:
    """The same where one class has no row."""
    return {
        **with_interval("auc", 0.5, Interval(0.0, 1.0)),
        **with_interval("auc_gain", 0.0, Interval(-1.0, 1.0)),
    }


def with_interval(name: str, value: float, bounds: Interval) -> dict[str, float]:
    return {name: value, f"{name}_low": bounds.low, f"{name}_high": bounds.high}
