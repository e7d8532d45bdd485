"""Which labelled rows enter a snapshot, and on which side of the holdout. Pure; decides on row heads, not on text."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from kto_ray.config import DataSection
from kto_ray.types import Example


@dataclass(frozen=True, slots=True)
class Head:
    """All of a row that selection needs: hashes in place of texts, so that a hundred thousand fit in a driver."""

    example_id: str
    user_hash: str
    prompt_hash: str
    pair_hash: str  # of prompt and answer
    label: bool
    source: str
    created_at: float

    @property
    def age_key(self) -> tuple[float, str]:
        """Sorts oldest first; the id breaks ties, so the order never depends on who was read first."""
        return self.created_at, self.example_id


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows of both splits, ordered by example id, and how many each filter left out."""

    train: tuple[Head, ...]
    holdout: tuple[Head, ...]
    dropped: Counter[str]


def head(example: Example, messages: str, salt: str) -> Head:
    """The head of an example whose messages are given as canonical JSON."""
    return Head(
        example_id=example.id,
        user_hash=user_hash(salt, example.user),
        prompt_hash=_digest(messages),
        pair_hash=_digest(messages, example.answer),
        label=example.desirable,
        source=example.source,
        created_at=example.created_at,
    )


def user_hash(salt: str, user: str) -> str:
    """How a user is named in snapshots: 32 hex digits."""
    return _digest(salt, user)


def select(heads: Sequence[Head], data: DataSection) -> Selection:
    """Deduplicate, split by user, cap each user's share, keep the newest `max_rows`.

    The result does not depend on the order of `heads`.
    """
    dropped: Counter[str] = Counter()
    rows = _dedupe(heads, dropped)
    splits: dict[bool, list[Head]] = {False: [], True: []}
    for row in rows:
        splits[in_holdout(row.user_hash, data.holdout_share)].append(row)
    capped = [row for split in splits.values() for row in cap(split, data.max_user_share, dropped)]
    newest = sorted(capped, key=lambda r: r.age_key, reverse=True)[: data.max_rows]
    dropped["window"] += len(capped) - len(newest)
    # The window takes more from some users than from others, hence the cap a second time.
    train = [r for r in newest if not in_holdout(r.user_hash, data.holdout_share)]
    holdout = [r for r in newest if in_holdout(r.user_hash, data.holdout_share)]
    return Selection(
        train=_by_id(cap(train, data.max_user_share, dropped)),
        holdout=_by_id(cap(holdout, data.max_user_share, dropped)),
        dropped=dropped,
    )


def in_holdout(user_hash: str, share: float) -> bool:
    """Whether a user is held out: the same answer for all their rows, now and in every later snapshot."""
    return int(_digest("holdout", user_hash)[:16], 16) < share * 2**64


def cap(rows: Sequence[Head], share: float, dropped: Counter[str]) -> list[Head]:
    """Keep so few rows of each user, newest first, that none fills more than `share` of the rows that remain.

    With fewer than 2 / share users that share would be unreachable or would cut all to the quietest user; then the
    bound is 2 / users, twice an equal share. The limit is measured on what remains, not on what came in: otherwise
    one flooding user would raise their own limit.
    """
    by_user: defaultdict[str, list[Head]] = defaultdict(list)
    for row in rows:
        by_user[row.user_hash].append(row)
    if not by_user:
        return []
    limit = _limit([len(own) for own in by_user.values()], max(share, 2 / len(by_user)))
    kept: list[Head] = []
    for own in by_user.values():
        kept += sorted(own, key=lambda r: r.age_key, reverse=True)[:limit]
    dropped["user_cap"] += len(rows) - len(kept)
    return kept


def _limit(counts: Sequence[int], share: float) -> int:
    """The largest c with c <= share * sum(min(count, c)). The right side is concave in c and starts above c = 1 (share
    is at least 2 / users), so the feasible c are 1..c and bisection finds the last."""
    low, high = 1, max(counts)
    while low < high:
        middle = (low + high + 1) // 2
        if middle <= share * sum(min(count, middle) for count in counts):
            low = middle
        else:
            high = middle - 1
    return low


def _dedupe(heads: Sequence[Head], dropped: Counter[str]) -> list[Head]:
    """One row per (user, prompt, answer), the latest, then one per (prompt, answer, label) over all users.

    The second step also keeps a text that one user was trained on out of another user's holdout under that label.
    """
    of_user: dict[tuple[str, str], Head] = {}
    for row in sorted(heads, key=lambda r: r.age_key):
        key = (row.user_hash, row.pair_hash)
        if key in of_user:
            dropped["duplicate" if of_user[key].label == row.label else "contradiction"] += 1
        of_user[key] = row
    unique = {(row.pair_hash, row.label): row for row in sorted(of_user.values(), key=lambda r: r.age_key)}
    dropped["duplicate"] += len(of_user) - len(unique)
    return list(unique.values())


def _by_id(rows: Sequence[Head]) -> tuple[Head, ...]:
    return tuple(sorted(rows, key=lambda r: r.example_id))


def _digest(*parts: str) -> str:
    """32 hex digits; the lengths keep ("ab", "c") and ("a", "bc") apart."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:32]
