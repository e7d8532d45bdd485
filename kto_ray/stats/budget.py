"""The error that a loop may still spend over its life: e-LORD, an online false discovery rate. Pure.

A test of round t may promote when its e-process reached 1 / level_t. With R promotions before it,

    level_t = omega (alpha - sum over j < t of level_j / (R_{j-1} + 1)) (R_{t-1} + 1).

Theorem: whatever the rounds owe to one another, the expected share of false promotions among all promotions is at most
alpha, at every round. Proof: a promotion in round t makes the final R at least R_{t-1} + 1, so the false share is at
most the sum over nulls t of 1{promoted} / (R_{t-1} + 1), and 1{promoted} <= e_t level_t, with e_t the e-process where
the round stopped. Given the past, e_t has mean at most 1 (optional stopping) and level_t is fixed: the mean is at most
the sum of level_t / (R_{t-1} + 1), each of which takes a share omega of what is left of alpha. A further condition on a
promotion only lowers 1{promoted}.

The sum is over every test that was begun: until somebody ended it, it could have promoted at its level. To leave out
those that an operator promoted would give a level back by the outcome, and the sum would have no bound.

So a test costs level / (R + 1): a promotion gives nothing of it back, but makes each later test cheaper, and the next
level is higher by omega times what is left. Without promotions the levels shrink by 1 - omega a round; after some
1 / omega promotions they shrink even with them. A person who resets the budget begins a new life, with an alpha of its
own: the sequence then begins there.

Source: Y. Zhang, Z. Wei, H. Ren, C. Zou, "e-GAI: e-value-based generalized alpha-investing for online false discovery
rate control", ICML 2025 (PMLR 267:76308-76331; arXiv:2506.01452), e-LORD.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kto_ray.records.rollouts import RolloutState, RolloutStatus

ALPHA = 0.1
OMEGA = 0.05


@dataclass(frozen=True, slots=True)
class Spent:
    """A finished test of the loop's life, however it ended. `promoted` is by evidence: what an operator promotes
    without it makes no later test cheaper."""

    level: float
    promoted: bool


def spent(tests: Iterable[RolloutState]) -> list[Spent]:
    """Finished tests as the budget sees them, in the same order."""
    return [Spent(test.level, test.by_evidence and test.status is RolloutStatus.PROMOTED) for test in tests]


def level(life: Sequence[Spent], alpha: float = ALPHA, omega: float = OMEGA) -> float:
    """The next test's level; 0 where nothing is left (an alpha that was lowered): it then promotes nothing.

    Args:
        life: the finished tests, oldest first.
        alpha: the false discovery rate.
        omega: the share of what is left that a test may cost.

    Raises:
        ValueError: alpha or omega is not in (0, 1).
    """
    for name, value in (("alpha", alpha), ("omega", omega)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}")
    return omega * left(life, alpha) * (promotions(life) + 1)


def left(life: Sequence[Spent], alpha: float = ALPHA) -> float:
    """What is left of alpha, at least 0."""
    before = 0
    cost = 0.0
    for test in life:
        cost += test.level / (before + 1)
        before += test.promoted
    return max(0.0, alpha - cost)


def promotions(life: Sequence[Spent]) -> int:
    return sum(test.promoted for test in life)
