"""Labels and tallies beside the log, trainings beside the rounds: what is often looked at no longer grows with it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from kto_ray.feedback.labels import labels as labels_of
from kto_ray.records.feedback import Feedback, FeedbackKind
from kto_ray.records.labels import Label

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SLOTS = 64
TOTALS = ("completions", "stored", "pending", "withdrawn", "up", "down", "edits", "came")
RANGE = 500  # completions that are labelled at once


def _some(table: str, *names: str) -> sa.TableClause:
    return sa.table(table, *(sa.column(name, sa.Boolean() if name == "value" else None) for name in names))


# As they are at this revision.
COMPLETIONS = _some("completions", "id", "text", "status", "task", "rollout", "arm", "user", "created_at")
FEEDBACK = _some("feedback", "id", "created_at", "kind", "completion_id", "user", "value", "text", "withdrawn_at")
LATER = {"forced": False, "principal": None, "tool_calls": None}  # what labels ask since other revisions
LABELS = _some("labels", "completion_id", "user", "verdict", "at", "rollout", "arm", "asker", "asked_at", "since")


def upgrade() -> None:
    _compatibility()
    _labels()
    _trainings()
    _fill()


def downgrade() -> None:
    op.drop_index("ix_feedback_pending", table_name="feedback")
    op.drop_index("ix_rounds_adapter", table_name="rounds")
    for table in ("labels", "tallies", "compatibility", "trainings"):
        op.drop_table(table)
    op.drop_column("requests", "refused")
    op.drop_column("rounds", "came_before")
    op.add_column("rounds", sa.Column("train_metrics", sa.JSON(), nullable=False, server_default="{}"))


def _compatibility() -> None:
    op.create_table("compatibility", sa.Column("oldest", sa.String(8), nullable=False))
    op.execute("INSERT INTO compatibility (oldest) VALUES ('0003')")


def _labels() -> None:
    op.create_table(
        "labels",
        sa.Column("completion_id", sa.String(64), nullable=False),
        sa.Column("user", sa.String(255), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("rollout", sa.String(64)),
        sa.Column("arm", sa.String(16), nullable=False),
        sa.Column("asker", sa.String(255)),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.Column("since", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["completion_id"], ["completions.id"], name="fk_labels_completion_id"),
        sa.PrimaryKeyConstraint("completion_id", "user", name="pk_labels"),
    )
    op.create_index("ix_labels_votes", "labels", ["rollout", "asker", "at", "completion_id", "user"])
    pending = sa.text("completion_id IS NULL")
    op.create_index("ix_feedback_pending", "feedback", ["id"], sqlite_where=pending, postgresql_where=pending)
    op.create_table(
        "tallies",
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False, server_default="0") for name in TOTALS),
        sa.PrimaryKeyConstraint("slot", name="pk_tallies"),
    )


def _trainings() -> None:
    op.create_table(
        "trainings",
        sa.Column("run", sa.String(255), nullable=False),
        sa.Column("round", sa.Integer()),
        sa.Column("snapshot", sa.String(64), nullable=False),
        sa.Column("adapter", sa.String(255)),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double()),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("history", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("run", name="pk_trainings"),
        sa.UniqueConstraint("round", name="uq_trainings_round"),
    )
    op.create_index("ix_rounds_adapter", "rounds", ["adapter"])
    op.add_column("rounds", sa.Column("came_before", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("requests", sa.Column("refused", sa.Boolean(), nullable=False, server_default=sa.false()))


def _fill() -> None:
    """What the new tables hold of the past."""
    tx = op.get_bind()
    _move_trainings(tx)
    op.drop_column("rounds", "train_metrics")
    log = sa.table("feedback", sa.column("completion_id"), sa.column("withdrawn_at"))
    count = sa.select(sa.func.count())
    stored = tx.execute(count.select_from(log)).scalar_one()
    pending = tx.execute(count.select_from(log).where(log.c.completion_id.is_(None))).scalar_one()
    withdrawn = tx.execute(count.select_from(log).where(log.c.withdrawn_at.is_not(None))).scalar_one()
    completions = tx.execute(count.select_from(sa.table("completions"))).scalar_one()
    newest = tx.execute(sa.text("SELECT id, started_at FROM rounds ORDER BY id DESC LIMIT 1")).first()
    verdicts, came = Counter[str](), 0
    for ids in _judged(tx):
        rows = [_row(found, newest) for found in _labelled(tx, ids)]
        op.bulk_insert(LABELS, rows)
        verdicts.update(row["verdict"] for row in rows)
        came += sum(row["since"] == (newest.id if newest else 0) for row in rows)
    totals = (completions, stored, pending, withdrawn, verdicts["up"], verdicts["down"], verdicts["edit"], came)
    table = sa.table("tallies", sa.column("slot"), *(sa.column(name) for name in TOTALS))
    first = dict(zip(TOTALS, totals, strict=True))
    op.bulk_insert(
        table, [{"slot": slot, **(first if slot == 0 else dict.fromkeys(TOTALS, 0))} for slot in range(SLOTS)]
    )


def _labelled(tx: sa.Connection, ids: Sequence[str]) -> Iterator[tuple[Any, Label]]:
    """(completion, label) of each label on these completions."""
    said: dict[str, list[Feedback]] = {}
    for row in tx.execute(sa.select(FEEDBACK).where(FEEDBACK.c.completion_id.in_(ids))).mappings():
        said.setdefault(row["completion_id"], []).append(Feedback(**{**row, "kind": FeedbackKind(row["kind"])}))
    forced, principal, calls = (sa.literal(value).label(name) for name, value in LATER.items())
    for answer in tx.execute(sa.select(COMPLETIONS, forced, principal, calls).where(COMPLETIONS.c.id.in_(ids))):
        yield from ((answer, label) for label in labels_of(answer, said.get(answer.id, [])))


def _row(found: tuple[Any, Label], newest: Any) -> dict[str, Any]:
    """`since` says which labels no round has seen: those decided after the newest one began."""
    answer, label = found
    fresh = newest is not None and label.at > newest.started_at
    return {
        "completion_id": answer.id,
        "user": label.user,
        "verdict": label.verdict.value,
        "at": label.at,
        "rollout": answer.rollout,
        "arm": answer.arm,
        "asker": answer.user,
        "asked_at": answer.created_at,
        "since": newest.id if fresh else 0,
    }


def _move_trainings(tx: sa.Connection) -> None:
    rounds = sa.table(
        "rounds",
        *(sa.column(name) for name in ("id", "snapshot", "adapter", "started_at", "ended_at")),
        sa.column("train_metrics", sa.JSON()),
    )
    trainings = sa.table(
        "trainings",
        *(sa.column(name) for name in ("run", "round", "snapshot", "adapter", "started_at", "ended_at")),
        sa.column("figures", sa.JSON()),
        sa.column("history", sa.JSON()),
    )
    for row in tx.execute(sa.select(rounds).where(rounds.c.snapshot.is_not(None))).all():
        figures = dict(row.train_metrics or {})
        if figures:
            history = figures.pop("history", [])
            figures = {**(history[-1] if history else {}), **figures}
            values = dict(snapshot=row.snapshot, adapter=row.adapter, started_at=row.started_at, ended_at=row.ended_at)
            run = f"round-{row.id}"
            tx.execute(trainings.insert().values(run=run, round=row.id, figures=figures, history=history, **values))


def _judged(tx: sa.Connection) -> Iterator[list[str]]:
    """The ids of completions with feedback, some at a time."""
    log = sa.table("feedback", sa.column("completion_id"))
    after = ""
    while True:
        query = sa.select(log.c.completion_id).where(log.c.completion_id > after).distinct()
        ids = list(tx.execute(query.order_by(log.c.completion_id).limit(RANGE)).scalars())
        if not ids:
            return
        yield ids
        after = ids[-1]
