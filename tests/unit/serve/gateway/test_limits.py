"""Token buckets and chats under way, on values."""

from __future__ import annotations

import pytest

from kto_ray.config.platform import LimitsSection
from kto_ray.serve.gateway import limits
from kto_ray.serve.gateway.limits import Bucket, Full, Limits, Meter, take


def test_a_bucket_holds_a_minutes_worth_and_fills_evenly() -> None:
    bucket, wait_s = take(None, 60, now=100.0)
    assert (bucket, wait_s) == (Bucket(59, 100.0), 0.0)
    for _ in range(59):
        bucket, wait_s = take(bucket, 60, now=100.0)
        assert wait_s == 0.0
    bucket, wait_s = take(bucket, 60, now=100.25)
    assert (bucket.tokens, wait_s) == (0.25, 0.75), "told to the fraction when the next token comes"
    bucket, wait_s = take(bucket, 60, now=101.0)
    assert (bucket.tokens, wait_s) == (0.0, 0.0)
    assert take(bucket, 60, now=10_000.0)[0] == Bucket(59, 10_000.0), "never more than a minute's worth"


def test_asking_in_vain_costs_no_token() -> None:
    bucket = Bucket(0.0, 0.0)
    for tenth in range(1, 10):
        bucket, wait_s = take(bucket, 60, now=tenth / 10)
        assert wait_s == pytest.approx(1 - tenth / 10)
    assert take(bucket, 60, now=1.0001)[1] == 0.0


def test_each_name_and_each_meter_has_a_bucket_of_its_own() -> None:
    of = Limits(LimitsSection(chats_per_minute=1, feedback_per_minute=1))
    assert of.wait_s(Meter.CHATS, "a", 0.0) == 0.0
    assert of.wait_s(Meter.CHATS, "a", 0.0) == 60.0
    assert of.wait_s(Meter.CHATS, "b", 0.0) == 0.0
    assert of.wait_s(Meter.FEEDBACK, "a", 0.0) == 0.0


def test_what_has_no_limit_is_not_counted() -> None:
    of = Limits(LimitsSection(chats_per_minute=None))
    assert not any(of.wait_s(Meter.CHATS, "a", 0.0) for _ in range(10_000))


def test_of_too_many_names_those_that_asked_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMEMBERED", 2)
    of = Limits(LimitsSection(chats_per_minute=1))
    for name in ("a", "b", "a", "c"):
        of.wait_s(Meter.CHATS, name, 0.0)
    assert of.wait_s(Meter.CHATS, "a", 0.0) > 0, "asked after b"
    assert of.wait_s(Meter.CHATS, "b", 0.0) == 0.0


def test_chats_at_once_are_bound_for_each_and_for_all() -> None:
    of = Limits(LimitsSection(chats_at_once=2, chats_in_all=3))
    assert [of.begin("a"), of.begin("a"), of.begin("a")] == [None, None, Full.PRINCIPAL]
    assert [of.begin(None), of.begin(None)] == [None, Full.GATEWAY]
    of.end("a")
    assert of.begin("b") is None


def test_without_keys_the_sum_alone_binds() -> None:
    of = Limits(LimitsSection(chats_at_once=1, chats_in_all=3))
    assert [of.begin(None) for _ in range(4)] == [None, None, None, Full.GATEWAY]
