"""Which version a conversation is with: asked of the store once, then kept up with what this gateway answers."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeAlias

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from kto_ray.records.completions import Completion, ExternalRef
from kto_ray.records.conversations import Conversation
from kto_ray.serve.gateway.errors import ApiError
from kto_ray.store import completions

WAIT_S = 0.25  # that a request waits for the store
KEPT = 20_000  # conversations, the last used

Found: TypeAlias = Conversation | None
Read: TypeAlias = Callable[[Callable[[sa.Connection], Found]], Awaitable[Found]]


class Untold(Exception):
    """Nobody can tell what a conversation was before."""


class Conversations:
    """When a conversation began never changes, so of what is kept only the newest answer may be old, where another
    gateway gave it. That does no harm: a conversation leaves its version only once that takes no part in any test, and
    then it is routed anew whichever of its versions is remembered; and what is old of its counting is so in every arm.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        # None: it had no answer when it was looked up. That may have changed elsewhere, so it is looked up again.
        self._known: OrderedDict[tuple[str, str, str], Found] = OrderedDict()

    async def of(self, user: str, ref: ExternalRef) -> Found:
        """None: it has no answer yet.

        Raises:
            Untold: the store is away, slow, or asked too much.
        """
        key = (user, ref.system, ref.conversation)
        if self._known.get(key) is None:
            try:
                found = await asyncio.wait_for(
                    self._read(lambda tx: completions.conversation_of(tx, user, ref)), WAIT_S
                )
            except (ApiError, SQLAlchemyError, TimeoutError):
                raise Untold from None
            self._known[key] = self._known.get(key) or found  # an answer that came meanwhile is newer
        self._known.move_to_end(key)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return self._known[key]

    def answered(self, row: Completion) -> None:
        """Take in an answer of this gateway. Of a conversation that was not looked up, it does not tell the begin."""
        if row.user is None or row.external is None:
            return
        key = (row.user, row.external.system, row.external.conversation)
        if key not in self._known:
            return
        known = self._known[key] or Conversation(row.created_at, row.adapter)
        self._known[key] = replace(known, adapter=row.adapter, rollout=row.rollout, holdback=row.holdback)
