from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kto_ray.config.learning import DataSection
from kto_ray.data import heads as columns
from kto_ray.data.heads import Heads, held_hash
from kto_ray.data.select import DAY_S, cap, in_holdout, select
from kto_ray.records.examples import Example
from kto_ray.records.users import user_hash

EXACT = {"near_duplicate": 1.0}


def make(
    i: int, user: str, *, pair: str | None = None, label: bool = True, at: float = 0.0, completion: str = ""
) -> Example:
    """Equal `pair`s are equal conversations and answers."""
    said = pair or f"pair{i}"
    messages = ({"role": "user", "content": said},)
    return Example(f"{i:032x}", completion or f"c{i}", user, messages, said, label, "thumb", "policy@base", at)


def heads_of(rows: list[Example], near_duplicate: float = 1.0) -> Heads:
    return columns.make(rows, "salt", near_duplicate)[0]


def everything(heads: Heads) -> np.ndarray:
    return np.arange(len(heads))


def chosen_of(rows: list[Example], **data: Any) -> tuple[list[Example], list[Example], Counter[str]]:
    """What `select` takes of rows: training, holdout and counts."""
    section = DataSection(**data)
    chosen = select(heads_of(rows, section.near_duplicate), section)
    assert len(rows) == len(chosen.train) + len(chosen.holdout) + sum(chosen.dropped.values())
    return [rows[i] for i in chosen.train], [rows[i] for i in chosen.holdout], +chosen.dropped


def numbers(rows: list[Example]) -> list[int]:
    return sorted(int(e.id, 16) for e in rows)


def test_answers_are_told_apart_by_what_they_call() -> None:
    def called(i: int, port: str) -> Example:
        call = {"id": f"call-{i}", "type": "function", "function": {"name": "tide", "arguments": port}}
        return dataclasses.replace(make(i, "ann", pair="the same"), tool_calls=(call,))

    train, holdout, dropped = chosen_of([called(1, "Hull"), called(2, "Leith"), called(3, "Hull")], **EXACT)
    assert numbers([*train, *holdout]) == [2, 3] and dropped == {"duplicate": 1}


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.floats(0.01, 1))
def test_no_user_fills_more_than_their_share(counts: Any, share: Any) -> None:
    rows = [make(1000 * u + i, f"u{u}") for u, n in enumerate(counts) for i in range(n)]
    dropped: Counter[str] = Counter()
    heads = heads_of(rows)
    kept = cap(heads, everything(heads), share, dropped)
    by_user = Counter(heads.user[kept].tolist())
    assert len(kept) + dropped["user_cap"] == len(rows)
    assert set(by_user) == set(heads.user.tolist())
    bound = max(share, 2 / len(counts))
    assert max(by_user.values()) <= bound * len(kept) + 1e-9
    # One row more for each capped user would break the bound: nothing is thrown away without need.
    limit = max(by_user.values())
    if dropped["user_cap"]:
        assert limit + 1 > bound * sum(min(n, limit + 1) for n in counts)


def test_a_flood_does_not_raise_its_own_limit() -> None:
    rows = [make(i, "flood") for i in range(5000)] + [make(10_000 + i, f"u{i}") for i in range(100)]
    heads = heads_of(rows)
    kept = Counter(rows[i].user for i in cap(heads, everything(heads), 0.05, Counter()))
    assert kept["flood"] == 5 and len(kept) == 101


def test_the_cap_keeps_the_newest() -> None:
    rows = [make(i, "flood", at=i) for i in range(50)] + [make(100 + i, f"u{i}") for i in range(100)]
    heads = heads_of(rows)
    kept = [rows[i].created_at for i in cap(heads, everything(heads), 0.03, Counter()) if rows[i].user == "flood"]
    assert sorted(kept) == [47.0, 48.0, 49.0]


def test_duplicates_and_contradictions() -> None:
    rows = [
        make(1, "ann", pair="x", label=True, at=1),
        make(2, "ann", pair="x", label=False, at=2),  # ann changed her mind: the latest stands
        make(3, "bob", pair="x", label=False, at=1),  # agrees with ann: one row of both
        make(4, "cat", pair="x", label=True, at=3),  # disagrees: both stand
        make(5, "dan", pair="y", label=True, at=3),
        make(6, "dan", pair="y", label=True, at=4),
    ]
    for seed in range(5):
        shuffled = random.Random(seed).sample(rows, len(rows))
        train, _, dropped = chosen_of(shuffled, holdout_share=1e-9, max_user_share=1.0)
        assert numbers(train) == [2, 4, 6]
        assert dropped == Counter(contradiction=1, duplicate=2)


WORDS = [f"word{i}" for i in range(80)]
LONG = " ".join(WORDS)
NEAR = " ".join([*WORDS[:40], "other", *WORDS[41:]])  # one word of 160 differs, with the conversation's
FAR = " ".join(f"other{i}" for i in range(80))


def said(i: int, user: str, answer: str, *, question: str = LONG, **facts: Any) -> Example:
    return dataclasses.replace(make(i, user, **facts), messages=({"role": "user", "content": question},), answer=answer)


def test_near_duplicates_leave_the_newest_and_contradict_like_equal_ones() -> None:
    rows = [
        said(1, "ann", LONG, at=1),
        said(2, "ann", NEAR, at=2),  # ann said so again
        said(3, "bob", NEAR, at=3, label=False),  # disagrees with ann: both stand
        said(4, "cat", LONG, at=4, label=False),  # agrees with bob: one row of both
        said(5, "dan", NEAR, at=5, question=FAR),  # the same answer to another question
        said(6, "eve", FAR, at=6, label=False),
        said(7, "eve", FAR + " indeed", at=7),  # eve changed her mind
        said(8, "ann", "yes it is", at=8, question="short"),  # too short to compare by shingles
        said(9, "ann", "yes it was", at=9, question="short"),
    ]
    for seed in range(5):
        shuffled = random.Random(seed).sample(rows, len(rows))
        train, _, dropped = chosen_of(shuffled, holdout_share=1e-9, max_user_share=1.0)
        assert numbers(train) == [2, 4, 5, 7, 8, 9]
        assert dropped == Counter(near_duplicate=2, contradiction=1)
    train, _, dropped = chosen_of(rows, holdout_share=1e-9, max_user_share=1.0, **EXACT)
    assert len(train) == 9 and not dropped


def test_a_long_conversation_does_not_make_its_answers_alike() -> None:
    talk = " ".join(f"context{i}" for i in range(2000))
    rows = [said(i, "ann", " ".join(f"answer{i}x{k}" for k in range(30)), question=talk, at=i) for i in range(6)]
    assert len(chosen_of(rows, holdout_share=1e-9, max_user_share=1.0)[0]) == 6


def test_the_two_sides_of_an_edit_stand_however_small_it_is() -> None:
    rows = [said(1, "ann", LONG, completion="c", label=False), said(2, "ann", NEAR, completion="c", label=True)]
    train, _, dropped = chosen_of(rows, holdout_share=1e-9, max_user_share=1.0)
    assert numbers(train) == [1, 2] and not dropped


def test_near_duplicates_are_found_by_their_similarity() -> None:
    rng = random.Random(0)
    rows = []
    for i in range(300):
        words = [f"w{rng.randrange(5000)}" for _ in range(200)]
        swapped = [f"z{k}" if i >= 150 and k % 10 == 0 else w for k, w in enumerate(words)]  # every third shingle
        for copy, answer in enumerate((words, swapped)):
            rows.append(said(2 * i + copy, f"u{i}", " ".join(answer), question=f"question {i}", at=copy))
        if i < 150:
            rows[-1] = dataclasses.replace(rows[-1], answer=rows[-1].answer + " so")
    train, _, dropped = chosen_of(rows, holdout_share=1e-9, max_user_share=1.0)
    assert dropped["near_duplicate"] >= 147  # of 150 whose similarity is 0.99
    assert {int(e.id, 16) // 2 for e in train if int(e.id, 16) % 2 == 0} >= set(range(150, 300))  # 0.54


def test_window_keeps_the_newest_rows() -> None:
    rows = [make(i, f"u{i}", at=i) for i in range(100)]
    train, holdout, dropped = chosen_of(rows, max_rows=30, older_share=0.0, max_user_share=1.0)
    assert sorted(r.created_at for r in (*train, *holdout)) == list(range(70, 100))
    assert dropped["window"] == 70


def test_window_keeps_a_share_of_what_is_older() -> None:
    rows = [make(i, f"u{i}", at=i) for i in range(4000)]
    settings = {"max_rows": 1000, "older_share": 0.3, "max_user_share": 1.0}
    train, holdout, dropped = chosen_of(rows, **settings)
    kept = sorted(int(e.id, 16) for e in (*train, *holdout))
    assert dropped["window"] == 3000 and kept[300:] == list(range(3300, 4000))
    older = np.array(kept[:300])
    thirds = np.histogram(older, bins=3, range=(0, 3300))[0]
    assert thirds.min() > 70 and thirds.max() < 130  # 100 each by an even draw; 8 is its standard deviation
    shuffled = random.Random(1).sample(rows, len(rows))
    assert numbers([e for split in chosen_of(shuffled, **settings)[:2] for e in split]) == kept
    other = numbers([e for split in chosen_of(rows, **settings, seed=1)[:2] for e in split])
    assert other[:300] != kept[:300] and other[300:] == kept[300:]
    assert numbers([e for split in chosen_of(rows[:800], **settings)[:2] for e in split]) == list(range(800))


def test_holdout_is_by_user_and_about_its_share() -> None:
    users = np.array([held_hash(user_hash("salt", f"u{i}")) for i in range(2000)], np.uint64)
    held = in_holdout(users, 0.2)
    assert 340 <= held.sum() <= 460  # 400 by binomial, more than three standard deviations either way
    assert (held >= in_holdout(users, 0.1)).all()
    other = np.array([held_hash(user_hash("other", f"u{i}")) for i in range(2000)], np.uint64)
    assert (held != in_holdout(other, 0.2)).any()


def test_held_out_users_count_by_what_they_said_lately_and_never_train() -> None:
    rows = [make(2 * u + i, f"u{u}", at=DAY_S * (100 if i else u)) for u in range(50) for i in range(2)]
    train, holdout, dropped = chosen_of(rows, holdout_days=70.0, max_user_share=1.0)
    held = {e.user for e in holdout}
    assert 0 < len(held) < 50 and not held & {e.user for e in train}
    assert len(train) == 2 * (50 - len(held))  # what the others said long ago still trains
    stale = [e for e in rows if e.user in held and e.created_at < 30 * DAY_S]
    assert stale and dropped == Counter(stale_holdout=len(stale))
    assert not set(numbers(stale)) & set(numbers(holdout))
    everything_held = chosen_of(rows, holdout_days=None, max_user_share=1.0)[1]
    assert len(everything_held) == 2 * len(held)


@pytest.mark.parametrize("near_duplicate", [0.9, 1.0])
def test_heads_survive_arrow(near_duplicate: Any) -> None:
    import pyarrow as pa

    heads = heads_of([said(1, "ann", LONG), make(2, "bob"), said(3, "cat", FAR)], near_duplicate)
    table = pa.table(columns.to_columns(heads))
    again = columns.from_batches([table.slice(0, 1), table.slice(1), table.slice(0, 0)])
    for field in dataclasses.fields(Heads):
        one, other = getattr(heads, field.name), getattr(again, field.name)
        assert one.dtype == other.dtype and one.shape == other.shape and (one == other).all()
    assert len(columns.from_batches([])) == 0
