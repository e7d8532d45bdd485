"""The turns after an answer that quote it: a client sends a conversation anew with each turn, which keeps it again."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from kto_ray.data import archive
from kto_ray.records.completions import Completion, Message
from kto_ray.store import archives, completions

AT_ONCE = 500  # completions that are looked at


def quoting(tx: sa.Connection, name: str) -> tuple[str, ...]:
    """The ids of what the same user asked later (where nobody in particular asked: in the same conversation) with the
    text of a completion among its messages, in the order of the store. Of an empty answer there are none.

    Raises:
        ValueError: an archive that may hold one is damaged.
    """
    own = completions.get(tx, name)
    said = _whole(tx, [own] if own is not None else []).get(name)
    if said is None or not said.text.strip():
        return ()
    found: list[str] = []
    behind = said
    while some := completions.asked_after(tx, behind, said.text.strip(), AT_ONCE):
        whole = _whole(tx, some)
        # One that its archive does not hold is what an erasure left that was killed before it came to the row.
        found += [one.id for one in some if one.id not in whole or quotes(whole[one.id].messages, said.text)]
        behind = some[-1]
    return tuple(found)


def quotes(messages: Sequence[Message], text: str) -> bool:
    """Whether an assistant said exactly this; clients trim what they send again."""
    return any(one.get("role") == "assistant" and _text(one).strip() == text.strip() for one in messages)


def _text(message: Message) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def _whole(tx: sa.Connection, some: Sequence[Completion]) -> dict[str, Completion]:
    """By id, with the texts that are in archives; without those that these do not hold any more."""
    found = [one for one in some if one.archive is None]
    for name in {one.archive for one in some if one.archive is not None}:
        kept = archives.get(tx, name)
        found += archive.restored_all([one for one in some if one.archive == name], kept) if kept is not None else []
    return {one.id: one for one in found}
