"""Archives: which files hold the texts of old completions, and how these leave the store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from kto_ray.records.archives import Archive
from kto_ray.records.completions import Completion
from kto_ray.store import labels, tallies
from kto_ray.store.mapping import completion_of
from kto_ray.store.schema import archives, completions, feedback

CHUNK = 500
WITHOUT: dict[str, Any] = {  # a completion whose texts are elsewhere
    "messages": [],
    "params": {},
    "text": "",
    "reasoning": None,
    "tool_calls": None,
    "stop_reason": None,
    "prompt_ids": None,
    "answer_ids": None,
}


@dataclass(frozen=True, slots=True)
class Old:
    """What decides whether a completion's texts go to an archive."""

    id: str
    created_at: float
    archived: bool
    judged: bool  # something was said of it
    rollout: str | None


class Changed(RuntimeError):
    """A completion was judged while its text was on the way to an archive: it stays."""


def older(tx: sa.Connection, than: float, after: tuple[float, str], limit: int) -> list[Old]:
    """The next completions from before a time (seconds since the epoch), behind (time, id) `after`, oldest first."""
    c = completions.c
    behind = (c.created_at > after[0]) | ((c.created_at == after[0]) & (c.id > after[1]))
    judged = sa.exists().where(feedback.c.completion_id == c.id)
    columns = (c.id, c.created_at, c.archive.is_not(None).label("archived"), judged.label("judged"), c.rollout)
    # Stated beside `behind` for the index's sake.
    query = sa.select(*columns).where(c.created_at >= after[0], c.created_at < than, behind)
    rows = tx.execute(query.order_by(c.created_at, c.id).limit(limit)).mappings()
    return [Old(**{**row, "archived": bool(row["archived"]), "judged": bool(row["judged"])}) for row in rows]


def whole(tx: sa.Connection, ids: Sequence[str]) -> list[Completion]:
    """Of these the completions that have their texts here, by id."""
    query = sa.select(completions).where(completions.c.id.in_(ids), completions.c.archive.is_(None))
    return [completion_of(row) for row in tx.execute(query.order_by(completions.c.id)).mappings()]


def move(tx: sa.Connection, archive: Archive, ids: Sequence[str], unjudged: Iterable[str]) -> None:
    """The texts of completions are in an archive now and leave the store, and with them their labels.

    Raises:
        Changed: one was archived or erased meanwhile, or one of the `unjudged` judged.
    """
    labels.lock(tx, ids)  # whoever says something of one waits, or is seen here
    there = sa.select(sa.func.count()).where(completions.c.id.in_(ids), completions.c.archive.is_(None))
    said = sa.select(sa.func.count()).where(feedback.c.completion_id.in_(list(unjudged)))
    if tx.execute(there).scalar_one() != len(ids) or tx.execute(said).scalar_one():
        raise Changed(f"a completion of archive {archive.id} was judged or erased just now; it is looked at again")
    insert(tx, archive)
    tx.execute(completions.update().where(completions.c.id.in_(ids)).values(**WITHOUT, archive=archive.id))
    tallies.add(tx, labels.refresh(tx, ids))


def insert(tx: sa.Connection, archive: Archive) -> None:
    tx.execute(archives.insert().values(**asdict(archive)))


def replace(tx: sa.Connection, archive: Archive) -> None:
    """Put an archive without some of its rows in its place; one that holds nothing more is gone."""
    mine = archives.c.id == archive.id
    if archive.completions:
        tx.execute(archives.update().where(mine).values(**asdict(archive)))
    else:
        tx.execute(archives.delete().where(mine))


def get(tx: sa.Connection, name: str | None) -> Archive | None:
    row = tx.execute(sa.select(archives).where(archives.c.id == name)).mappings().first()
    return Archive(**row) if row else None


def every(tx: sa.Connection) -> list[Archive]:
    """Oldest first."""
    rows = tx.execute(sa.select(archives).order_by(archives.c.created_at, archives.c.id)).mappings()
    return [Archive(**row) for row in rows]


def holding(tx: sa.Connection, ids: Sequence[str]) -> list[Archive]:
    """The archives that hold texts of these completions."""
    names: set[str] = set()
    for begin in range(0, len(ids), CHUNK):
        chosen = completions.c.id.in_(ids[begin : begin + CHUNK]) & completions.c.archive.is_not(None)
        names.update(tx.execute(sa.select(completions.c.archive).where(chosen).distinct()).scalars())
    return [archive for archive in every(tx) if archive.id in names]


def left_out(tx: sa.Connection, until: int) -> int:
    """Events up to the number `until` in the order of the store that a snapshot leaves out because the text that they
    judge is in an archive; it walks the log, where there are archives."""
    if tx.execute(sa.select(archives.c.id).limit(1)).first() is None:
        return 0
    joined = feedback.join(completions, feedback.c.completion_id == completions.c.id)
    standing = completions.c.archive.is_not(None) & completions.c.task.is_(None) & feedback.c.withdrawn_at.is_(None)
    query = sa.select(sa.func.count()).select_from(joined).where(standing, feedback.c.seq <= until)
    return int(tx.execute(query).scalar_one())
