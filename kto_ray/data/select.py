"""Which labelled rows enter a snapshot, and which users are held out of it. Pure: columns in, row numbers out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kto_ray.config.learning import DataSection
from kto_ray.data.heads import Heads, Index
from kto_ray.data.near import Hashes, alike, mixed

DAY_S = 86_400.0
CHUNK = 100_000  # pairs whose signatures are compared at a time


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows of both splits, ordered by the hash of their id, and how many each filter left out."""

    train: Index
    holdout: Index
    dropped: Counter[str]


def select(heads: Heads, data: DataSection) -> Selection:
    """Deduplicate, split by user and time, cap each user's share, keep a window of `max_rows`.

    The result does not depend on the order of the rows.
    """
    dropped: Counter[str] = Counter()
    rows = near_dedupe(heads, dedupe(heads, dropped), data.near_duplicate, dropped)
    rows = _without_stale(heads, rows, data, dropped)
    train, holdout = _split(heads, rows, data.holdout_share)
    share = data.max_user_share
    rows = np.concatenate([cap(heads, train, share, dropped), cap(heads, holdout, share, dropped)])
    kept = window(heads, rows, data.max_rows, data.older_share, data.seed)
    dropped["window"] += len(rows) - len(kept)
    # The window takes more from some users than from others, hence the cap a second time.
    train, holdout = _split(heads, kept, data.holdout_share)
    train, holdout = cap(heads, train, share, dropped), cap(heads, holdout, share, dropped)
    return Selection(by_id(heads, train), by_id(heads, holdout), dropped)


def in_holdout(held: Hashes, share: float) -> NDArray[np.bool_]:
    """Whether users, given by `held_hash`, are held out: the same for all their rows, now and in every later
    snapshot."""
    result: NDArray[np.bool_] = held < np.uint64(share * 2**64)
    return result


def dedupe(heads: Heads, dropped: Counter[str]) -> Index:
    """One row per (user, prompt, answer), the latest, then one per (prompt, answer, label) over all users.

    The second step also keeps a text that one user was trained on out of another user's holdout under that label.
    """
    order = _oldest_first(heads, np.arange(len(heads)), heads.pair, heads.user)
    followed = _followed(heads.pair[order]) & _followed(heads.user[order])
    of_user = order[~followed]
    _count(heads.label[order], followed, dropped)
    order = _oldest_first(heads, of_user, heads.label, heads.pair)
    followed = _followed(heads.pair[order]) & _followed(heads.label[order])
    dropped["duplicate"] += int(followed.sum())
    return order[~followed]


def near_dedupe(heads: Heads, rows: Index, threshold: float, dropped: Counter[str]) -> Index:
    """The same two steps for texts that are nearly the same: a row goes when a newer one is nearly like it, one of the
    same user first, then one of anybody's with the same label.

    The two sides of an edit, which come from one completion, do not contradict each other: the difference is the
    lesson, however small.
    """
    gone = np.zeros(len(heads), np.bool_)
    for band in heads.bands.T:
        # mixed, so that neither user nor label can undo what the band tells apart
        key = mixed(band ^ mixed(heads.user))
        older, newer = _near_pairs(heads, _shared(key, rows[band[rows] != 0]), key, threshold)
        same = heads.label[older] == heads.label[newer]
        counts = (same | (heads.completion[older] != heads.completion[newer])) & ~gone[older]
        dropped["near_duplicate"] += int((counts & same).sum())
        dropped["contradiction"] += int((counts & ~same).sum())
        gone[older[counts]] = True
    rows = rows[~gone[rows]]
    for band in heads.bands.T:
        key = mixed(band ^ heads.label)
        older, _ = _near_pairs(heads, _shared(key, rows[band[rows] != 0]), key, threshold)
        dropped["near_duplicate"] += int((~gone[older]).sum())
        gone[older] = True
    return rows[~gone[rows]]


def window(heads: Heads, rows: Index, size: int, older_share: float, seed: int) -> Index:
    """At most `size` rows: the newest, and in a full window `older_share` of it drawn evenly from all older ones.

    Which older ones is decided by their ids and the seed. As the window moves on, an older row stays while it is among
    the first in that order.
    """
    if len(rows) <= size:
        return rows
    older = math.floor(size * older_share)
    in_time = _oldest_first(heads, rows)
    newest, rest = in_time[len(rows) - (size - older) :], in_time[: len(rows) - (size - older)]
    by_chance = np.argsort(mixed(heads.id[rest] ^ mixed(np.array([seed], np.uint64))), kind="stable")
    kept: Index = np.concatenate([newest, rest[by_chance[:older]]])
    return kept


def cap(heads: Heads, rows: Index, share: float, dropped: Counter[str]) -> Index:
    """Keep so few rows of each user, newest first, that none fills more than `share` of the rows that remain.

    With fewer than 2 / share users that share would be unreachable or would cut all to the quietest user; then the
    bound is 2 / users, twice an equal share. The limit is measured on what remains, not on what came in: otherwise
    one flooding user would raise their own limit.
    """
    if len(rows) == 0:
        return rows
    order = _oldest_first(heads, rows, heads.user)
    _, starts, counts = np.unique(heads.user[order], return_index=True, return_counts=True)
    limit = _limit(counts, max(share, 2 / len(counts)))
    newer = np.repeat(starts + counts, counts) - 1 - np.arange(len(order))  # rows of the same user that are newer
    kept: Index = order[newer < limit]
    dropped["user_cap"] += len(rows) - len(kept)
    return kept


def by_id(heads: Heads, rows: Index) -> Index:
    """The rows in an order that no order of reading changes."""
    ordered: Index = rows[np.argsort(heads.id[rows], kind="stable")]
    return ordered


def _without_stale(heads: Heads, rows: Index, data: DataSection, dropped: Counter[str]) -> Index:
    """Without what held-out users said long before the newest feedback: it neither judges nor, being theirs, trains."""
    if data.holdout_days is None or len(rows) == 0:
        return rows
    oldest = heads.created_at[rows].max() - data.holdout_days * DAY_S
    stale = in_holdout(heads.held[rows], data.holdout_share) & (heads.created_at[rows] < oldest)
    dropped["stale_holdout"] += int(stale.sum())
    fresh: Index = rows[~stale]
    return fresh


def _split(heads: Heads, rows: Index, share: float) -> tuple[Index, Index]:
    held = in_holdout(heads.held[rows], share)
    return rows[~held], rows[held]


def _limit(counts: Index, share: float) -> int:
    """The largest c with c <= share * sum(min(count, c)). The right side is concave in c and starts above c = 1 (share
    is at least 2 / users), so the feasible c are 1..c and bisection finds the last."""
    low, high = 1, int(counts.max())
    while low < high:
        middle = (low + high + 1) // 2
        if middle <= share * int(np.minimum(counts, middle).sum()):
            low = middle
        else:
            high = middle - 1
    return low


def _oldest_first(heads: Heads, rows: Index, *keys: NDArray[Any]) -> Index:
    """The rows sorted by the last key first, then the one before it, then by time; the id breaks ties, so the order
    never depends on who was read first."""
    order: Index = rows[np.lexsort((heads.id[rows], heads.created_at[rows], *(key[rows] for key in keys)))]
    return order


def _followed(sorted_keys: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the next row has the same key."""
    followed = np.zeros(len(sorted_keys), np.bool_)
    followed[:-1] = sorted_keys[:-1] == sorted_keys[1:]
    return followed


def _count(labels: NDArray[np.bool_], followed: NDArray[np.bool_], dropped: Counter[str]) -> None:
    same = followed & _followed(labels)
    dropped["duplicate"] += int(same.sum())
    dropped["contradiction"] += int((followed & ~same).sum())


def _shared(key: Hashes, rows: Index) -> Index:
    """The rows whose key another row has too."""
    order = rows[np.argsort(key[rows], kind="stable")]
    followed = _followed(key[order])
    return order[followed | np.roll(followed, 1)]


def _near_pairs(heads: Heads, rows: Index, key: Hashes, threshold: float) -> tuple[Index, Index]:
    """(older, newer) row numbers: each row with the next newer one of its key, where the signatures say near."""
    order = _oldest_first(heads, rows, key)
    at = np.flatnonzero(_followed(key[order]))
    older, newer = order[at], order[at + 1]
    near = [
        alike(heads.signature[older[i : i + CHUNK]], heads.signature[newer[i : i + CHUNK]], threshold)
        for i in range(0, len(at), CHUNK)
    ]
    chosen = np.concatenate(near) if near else np.empty(0, np.bool_)
    return older[chosen], newer[chosen]
