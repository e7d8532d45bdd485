"""An order of the store's own; who asked, what the engine read and said; keys, quarantine and archives."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from kto_ray.feedback.labels import labels as labels_of
from kto_ray.records.feedback import Feedback, FeedbackKind

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TALLIES = ("held", "strangers", "orphans")
RANGE = 500  # completions that are labelled at once
VERDICTS = {"up": "up", "down": "down", "edit": "edits"}  # and the totals that count them
USERS = (("completions", "user"), ("feedback", "user"), ("labels", "user"), ("labels", "asker"))


def upgrade() -> None:
    _order()
    _completions()
    _feedback()
    _labels()
    _owners()
    _whose()
    _keys_and_archives()
    if op.get_bind().dialect.name != "sqlite":
        for table, column in USERS:
            op.alter_column(table, column, type_=sa.String(320))
    op.execute("UPDATE compatibility SET oldest = '0004'")


def downgrade() -> None:
    for table in ("keys", "archives"):
        op.drop_table(table)
    op.drop_index("ix_labels_votes", "labels")
    op.add_column("labels", sa.Column("asked_at", sa.Double(), nullable=False, server_default="0"))
    op.create_index("ix_labels_votes", "labels", ["rollout", "asker", "at", "completion_id", "user"])
    for name in ("seq", "reviewer", "asked_seq"):
        op.drop_column("labels", name)
    op.drop_column("rollouts", "stage_started_seq")
    _pending("completion_id IS NULL")
    for name in TALLIES:
        op.drop_column("tallies", name)
    for name in ("seq", "key", "completion_id", "parent", "held", "user", "waiting", "edits"):
        op.drop_index(f"ix_feedback_{name}", "feedback")
    with op.batch_alter_table("feedback") as batch:
        for name in ("seq", "key_owner", "principal", "reviewer", "signal", "parent", "held", "held_why"):
            batch.drop_column(name)
        batch.create_unique_constraint("uq_feedback_idempotency_key", ["idempotency_key"])
    op.create_index("ix_feedback_completion_id", "feedback", ["completion_id"])
    op.drop_index("ix_completions_seq", "completions")
    for name in ("seq", "principal", "forced", "prompt_ids", "answer_ids", "stop_reason", "reasoning"):
        op.drop_column("completions", name)
    for name in ("tool_calls", "base", "archive"):
        op.drop_column("completions", name)
    op.drop_table("sequence")
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP SEQUENCE store_order")
        for table, column in USERS:
            op.alter_column(table, column, type_=sa.String(255))
    op.execute("UPDATE compatibility SET oldest = '0003'")


def _order() -> None:
    """Of what is there: by its times."""
    op.create_table("sequence", sa.Column("value", sa.BigInteger(), nullable=False))
    for table in ("completions", "feedback"):
        op.add_column(table, sa.Column("seq", sa.BigInteger(), nullable=False, server_default="0"))
    tx = op.get_bind()
    newest = 0
    for table in ("completions", "feedback"):
        tx.execute(
            sa.text(
                f"UPDATE {table} SET seq = o.n FROM (SELECT id, {newest} + row_number() OVER (ORDER BY created_at, id) "
                f"AS n FROM {table}) AS o WHERE o.id = {table}.id"
            )
        )
        newest = tx.execute(sa.text(f"SELECT coalesce(max(seq), {newest}) FROM {table}")).scalar_one()
        op.create_index(f"ix_{table}_seq", table, ["seq"], unique=True)
    if tx.dialect.name == "sqlite":
        tx.execute(sa.text(f"INSERT INTO sequence (value) VALUES ({newest})"))
        return
    for table in ("completions", "feedback"):
        op.alter_column(table, "seq", server_default=None)
    tx.execute(sa.text(f"CREATE SEQUENCE store_order START {newest + 1}"))


def _completions() -> None:
    for column in (
        sa.Column("principal", sa.String(255)),
        sa.Column("forced", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("prompt_ids", sa.LargeBinary()),
        sa.Column("answer_ids", sa.LargeBinary()),
        sa.Column("stop_reason", sa.Text()),
        sa.Column("reasoning", sa.Text()),
        sa.Column("tool_calls", sa.JSON()),
        sa.Column("base", sa.String(64)),
        sa.Column("archive", sa.String(64)),
    ):
        op.add_column("completions", column)


def _feedback() -> None:
    with op.batch_alter_table("feedback") as batch:
        batch.drop_constraint("uq_feedback_idempotency_key", type_="unique")
        batch.add_column(sa.Column("key_owner", sa.String(511), nullable=False, server_default=""))
        batch.add_column(sa.Column("principal", sa.String(255)))
        batch.add_column(sa.Column("reviewer", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch.add_column(sa.Column("signal", sa.String(16)))
        batch.add_column(sa.Column("parent", sa.String(64)))
        batch.add_column(sa.Column("held", sa.String(16)))
        batch.add_column(sa.Column("held_why", sa.Text()))
    op.drop_index("ix_feedback_completion_id", "feedback")
    op.create_index("ix_feedback_completion_id", "feedback", ["completion_id", "seq"])
    op.create_index("ix_feedback_key", "feedback", ["idempotency_key", "key_owner"], unique=True)
    for name, columns in (("parent", ["parent"]), ("held", ["held", "seq"])):
        some = sa.text(f"{name} IS NOT NULL")
        op.create_index(f"ix_feedback_{name}", "feedback", columns, sqlite_where=some, postgresql_where=some)
    op.create_index("ix_feedback_user", "feedback", ["user", "created_at"])
    for name, columns, of in (("waiting", ["user"], "held = 'held'"), ("edits", ["seq"], "kind = 'edit'")):
        some = sa.text(of)
        op.create_index(f"ix_feedback_{name}", "feedback", columns, sqlite_where=some, postgresql_where=some)
    _pending("completion_id IS NULL AND held IS NULL")
    for name in TALLIES:
        op.add_column("tallies", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))


def _pending(of: str) -> None:
    op.drop_index("ix_feedback_pending", "feedback")
    op.create_index("ix_feedback_pending", "feedback", ["id"], sqlite_where=sa.text(of), postgresql_where=sa.text(of))


def _labels() -> None:
    """Labels know their event by its time; what came at the same time is told apart by its id, as it was before."""
    op.add_column("labels", sa.Column("seq", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("labels", sa.Column("reviewer", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("labels", sa.Column("asked_seq", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE labels SET asked_seq = (SELECT seq FROM completions WHERE id = labels.completion_id), seq = coalesce("
        "(SELECT max(f.seq) FROM feedback f WHERE f.completion_id = labels.completion_id AND f.created_at = labels.at "
        "AND f.withdrawn_at IS NULL), 0)"
    )
    op.drop_index("ix_labels_votes", "labels")
    op.drop_column("labels", "asked_at")
    op.create_index("ix_labels_votes", "labels", ["rollout", "asker", "seq"])
    op.add_column("rollouts", sa.Column("stage_started_seq", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE rollouts SET stage_started_seq = (SELECT coalesce(max(seq), 0) FROM completions "
        "WHERE created_at < rollouts.stage_started_at)"
    )


def _owners() -> None:
    """Whose an Idempotency-Key is, as it is told where no API keys are in use: a request that is sent again across this
    revision counts once. The hash of its body was another one then, and says nothing any more."""
    op.execute(
        'UPDATE feedback SET body_hash = NULL, key_owner = substr(CASE WHEN "user" IS NOT NULL THEN \'/\' || "user" '
        "ELSE '//' || coalesce(named_completion, external_conversation || '/' || coalesce(external_message, 'None'), "
        "'None') END, 1, 511) WHERE idempotency_key IS NOT NULL"
    )


def _some(table: str, *names: str) -> sa.TableClause:
    return sa.table(table, *(sa.column(name, sa.Boolean() if name == "value" else None) for name in names))


# As they are at this revision.
SAID = _some("feedback", "id", "seq", "created_at", "kind", "completion_id", "user", "value", "text", "withdrawn_at")
STANDING = _some("feedback", "id", "completion_id", "user", "held", "held_why")
ANSWERS = _some("completions", "id", "seq", "text", "status", "task", "rollout", "arm", "user", "principal", "forced")
LABELS = _some(
    *("labels", "completion_id", "user", "verdict", "at", "seq", "reviewer"),
    *("rollout", "arm", "asker", "asked_seq", "since"),
)


def _whose() -> None:
    """A label is of who received the answer: what named nobody is theirs, and what others said is none."""
    tx = op.get_bind()
    unnamed = (LABELS.c.asker.is_(None)) & LABELS.c.user.like("anonymous:%")
    # Where somebody called themselves that: labelled anew, with those that others judged.
    named = sa.select(LABELS.c.completion_id).where(LABELS.c.asker.is_(None), LABELS.c.user == "anonymous")
    both = set(tx.execute(named).scalars())
    tx.execute(LABELS.update().where(unnamed, LABELS.c.completion_id.not_in(named)).values(user="anonymous"))
    asker = sa.select(ANSWERS.c.user).where(ANSWERS.c.id == STANDING.c.completion_id).scalar_subquery()
    joined = STANDING.c.completion_id.is_not(None)
    others = joined & STANDING.c.user.is_distinct_from(asker)
    ids = sorted(both.union(tx.execute(sa.select(STANDING.c.completion_id).where(others).distinct()).scalars()))
    tx.execute(STANDING.update().where(joined, STANDING.c.user.is_(None)).values(user=asker))
    strange = tx.execute(STANDING.update().where(others).values(held="dropped", held_why="stranger")).rowcount
    change = {"strangers": strange, **dict.fromkeys((*VERDICTS.values(), "came"), 0)}
    newest = tx.execute(sa.text("SELECT coalesce(max(id), 0) FROM rounds")).scalar_one()
    for begin in range(0, len(ids), RANGE):
        _relabel(tx, ids[begin : begin + RANGE], newest, change)
    moved = ", ".join(f"{name} = {name} + {by}" for name, by in change.items())
    tx.execute(sa.text(f"UPDATE tallies SET {moved} WHERE slot = 0"))


def _relabel(tx: sa.Connection, ids: Sequence[str], newest: int, change: dict[str, int]) -> None:
    """Make the labels of some completions anew. One that another's outranked is as new as that was."""
    said: dict[str, list[Feedback]] = {}
    for row in tx.execute(sa.select(SAID).where(SAID.c.completion_id.in_(ids))).mappings():
        said.setdefault(row["completion_id"], []).append(Feedback(**{**row, "kind": FeedbackKind(row["kind"])}))
    ours = LABELS.c.completion_id.in_(ids)
    since: dict[str, int] = {}
    for standing in tx.execute(sa.select(LABELS).where(ours)):
        since[standing.completion_id] = max(since.get(standing.completion_id, 0), standing.since)
        change[VERDICTS[standing.verdict]] -= 1
        change["came"] -= standing.since == newest
    tx.execute(LABELS.delete().where(ours))
    for answer in tx.execute(sa.select(ANSWERS, sa.null().label("tool_calls")).where(ANSWERS.c.id.in_(ids))):
        for label in labels_of(answer, said.get(answer.id, [])):
            tx.execute(LABELS.insert().values(**_columns(answer, label, since.get(answer.id, 0))))
            change[VERDICTS[label.verdict.value]] += 1
            change["came"] += since.get(answer.id, 0) == newest


def _columns(answer: Any, label: Any, since: int) -> dict[str, Any]:
    return {
        "completion_id": answer.id,
        "user": label.user,
        "verdict": label.verdict.value,
        "at": label.at,
        "seq": label.seq,
        "reviewer": False,
        "rollout": answer.rollout,
        "arm": answer.arm,
        "asker": answer.user,
        "asked_seq": answer.seq,
        "since": since,
    }


def _keys_and_archives() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("vouches", sa.Boolean(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
    )
    op.create_table(
        "archives",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("completions", sa.Integer(), nullable=False),
        sa.Column("oldest_at", sa.Double(), nullable=False),
        sa.Column("newest_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_archives"),
    )
