"""The turns after an answer that quote it: a client sends a conversation anew with each turn, which keeps it again."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from kto_ray.data import archive
from kto_ray.records.completions import Completion, Message
from kto_ray.store import archives, completions

AT_ONCE = 500  # completions that are looked at


def quoting(tx: sa.Connection, name: str) -> tuple[str, ...]:
    """The ids of the later turns that quote a completion, in the order of the store.

    Raises:
        ValueError: an archive that may hold one is damaged.
    """
    behind = one = said(tx, name)
    found: list[str] = []
    while one and behind and (some := completions.asked_after(tx, behind, one.text.strip(), AT_ONCE)):
        whole = _whole(tx, some)
        # One that its archive does not hold is what an erasure left that was killed before it came to the row.
        found += [each.id for each in some if each.id not in whole or continues(one, whole[each.id])]
        behind = some[-1]
    return tuple(found)


def said(tx: sa.Connection, name: str) -> Completion | None:
    """A completion with its text; None where it has none that could be quoted.

    Raises:
        ValueError: the archive of its text is damaged.
    """
    own = completions.get(tx, name)
    found = _whole(tx, [own] if own is not None else []).get(name)
    return found if found is not None and found.text.strip() else None


def continues(one: Completion, other: Completion) -> bool:
    """Whether another completion, which came later, is of the same user (where nobody in particular asked: of the same
    conversation) and has exactly this one's text among its messages."""
    return (one.principal, one.user, _talk(one)) == (other.principal, other.user, _talk(other)) and quotes(
        other.messages, one.text
    )


def _talk(one: Completion) -> tuple[str, str] | str | None:
    """Which conversation of nobody in particular; one without a name is like no other."""
    if one.user is not None:
        return None
    return (one.external.system, one.external.conversation) if one.external is not None else one.id


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
