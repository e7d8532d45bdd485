"""How often and how much at once: token buckets, and chats under way, in the memory of one gateway. Pure."""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict
from dataclasses import dataclass

from kto_ray.config.platform import LimitsSection

REMEMBERED = 100_000  # names of a kind, those that asked last


@dataclass(frozen=True, slots=True)
class Bucket:
    """It fills evenly up to a minute's worth, and each request takes a token."""

    tokens: float
    at: float  # in seconds, of any clock that only goes forward


def take(bucket: Bucket | None, per_minute: int, now: float) -> tuple[Bucket, float]:
    """What is left, and how many seconds are to wait for the next token: 0 where one was taken. None is a full one."""
    per_s = per_minute / 60
    held = per_minute if bucket is None else min(per_minute, bucket.tokens + (now - bucket.at) * per_s)
    if held >= 1:
        return Bucket(held - 1, now), 0.0
    return Bucket(held, now), (1 - held) / per_s


class Meter(enum.Enum):
    """What is counted, and whose. The values are the fields of `LimitsSection`."""

    CHATS = "chats_per_minute"
    CHATS_OF_USER = "chats_per_minute_of_user"
    FEEDBACK = "feedback_per_minute"
    FEEDBACK_OF_USER = "feedback_per_minute_of_user"


class Full(enum.Enum):
    """Why a chat cannot begin now."""

    PRINCIPAL = "chats_at_once"
    GATEWAY = "chats_in_all"


class Limits:
    """What everybody has left of `config`."""

    def __init__(self, config: LimitsSection) -> None:
        self.config = config
        self._buckets: dict[Meter, OrderedDict[str, Bucket]] = {meter: OrderedDict() for meter in Meter}
        self._chats: Counter[str | None] = Counter()

    def wait_s(self, meter: Meter, name: str, now: float) -> float:
        """Count one request of `name`; how long it has to wait instead, 0 where it need not."""
        per_minute: int | None = getattr(self.config, meter.value)
        if per_minute is None:
            return 0.0
        buckets = self._buckets[meter]
        buckets[name], wait_s = take(buckets.pop(name, None), per_minute, now)
        if len(buckets) > REMEMBERED:
            buckets.popitem(last=False)
        return wait_s

    def full(self, principal: str | None) -> Full | None:
        """Whether there are too many chats for one more. Without keys everybody is one: the sum alone binds."""
        most = self.config.chats_at_once
        if self._chats.total() >= self.config.chats_in_all:
            return Full.GATEWAY
        if principal is not None and most is not None and self._chats[principal] >= most:
            return Full.PRINCIPAL
        return None

    def begin(self, principal: str | None) -> Full | None:
        """Count a chat under way, unless there are too many."""
        full = self.full(principal)
        if full is None:
            self._chats[principal] += 1
        return full

    def end(self, principal: str | None) -> None:
        self._chats[principal] -= 1
        if not self._chats[principal]:
            del self._chats[principal]
