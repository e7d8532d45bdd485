import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kto_ray.config import DataSection
from kto_ray.data.select import Head, cap, head, in_holdout, select
from kto_ray.types import Example


def make(i: int, user: str, *, pair: str | None = None, label: bool = True, at: float = 0.0) -> Head:
    return Head(f"{i:032x}", user, "p", pair or f"pair{i}", label, "thumb", at)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.floats(0.01, 1))
def test_no_user_fills_more_than_their_share(counts, share):
    rows = [make(1000 * u + i, f"u{u}") for u, n in enumerate(counts) for i in range(n)]
    dropped: Counter[str] = Counter()
    kept = cap(rows, share, dropped)
    by_user = Counter(r.user_hash for r in kept)
    assert len(kept) + dropped["user_cap"] == len(rows)
    assert set(by_user) == {r.user_hash for r in rows}
    bound = max(share, 2 / len(counts))
    assert max(by_user.values()) <= bound * len(kept) + 1e-9
    # One row more for each capped user would break the bound: nothing is thrown away without need.
    limit = max(by_user.values())
    if dropped["user_cap"]:
        assert limit + 1 > bound * sum(min(n, limit + 1) for n in counts)


def test_a_flood_does_not_raise_its_own_limit():
    rows = [make(i, "flood") for i in range(5000)] + [make(10_000 + i, f"u{i}") for i in range(100)]
    kept = Counter(r.user_hash for r in cap(rows, 0.05, Counter()))
    assert kept["flood"] == 5 and len(kept) == 101


def test_the_cap_keeps_the_newest():
    rows = [make(i, "flood", at=i) for i in range(50)] + [make(100 + i, f"u{i}") for i in range(100)]
    kept = [r.created_at for r in cap(rows, 0.03, Counter()) if r.user_hash == "flood"]
    assert kept == [49.0, 48.0, 47.0]


def test_duplicates_and_contradictions():
    rows = [
        make(1, "ann", pair="x", label=True, at=1),
        make(2, "ann", pair="x", label=False, at=2),  # ann changed her mind: the latest stands
        make(3, "bob", pair="x", label=False, at=1),  # agrees with ann: one row of both
        make(4, "cat", pair="x", label=True, at=3),  # disagrees: both stand
        make(5, "dan", pair="y", label=True, at=3),
        make(6, "dan", pair="y", label=True, at=4),
    ]
    data = DataSection(holdout_share=1e-9, max_user_share=1.0)
    for seed in range(5):
        chosen = select(random.Random(seed).sample(rows, len(rows)), data)
        assert [int(r.example_id, 16) for r in chosen.train] == [2, 4, 6]
        assert chosen.dropped == Counter(contradiction=1, duplicate=2)


def test_window_keeps_the_newest_rows():
    rows = [make(i, f"u{i}", at=i) for i in range(100)]
    chosen = select(rows, DataSection(max_rows=30, max_user_share=1.0))
    assert sorted(r.created_at for r in (*chosen.train, *chosen.holdout)) == list(range(70, 100))
    assert chosen.dropped["window"] == 70


def test_holdout_is_by_user_and_about_its_share():
    example = Example("0" * 32, "c", "u", (), "a", True, "thumb", "policy@base", 0.0)
    users = [head(Example(**{**fields(example), "user": f"u{i}"}), "[]", "salt").user_hash for i in range(2000)]
    held = sum(in_holdout(u, 0.2) for u in users)
    assert 340 <= held <= 460  # 400 by binomial, more than three standard deviations either way
    assert {u for u in users if in_holdout(u, 0.1)} <= {u for u in users if in_holdout(u, 0.2)}
    other = [head(Example(**{**fields(example), "user": f"u{i}"}), "[]", "other").user_hash for i in range(2000)]
    assert [in_holdout(u, 0.2) for u in users] != [in_holdout(u, 0.2) for u in other]


def fields(example: Example) -> dict:
    return {name: getattr(example, name) for name in Example.__slots__}
