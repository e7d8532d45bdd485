"""The tables of what was learnt, of the loop and of who serves."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    false,
    true,
)

from kto_ray.records.trials import FAULTS, REACTIONS, SOLICITED
from kto_ray.store.schema.base import USER, metadata

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("uri", Text, nullable=False),
    Column("manifest", JSON, nullable=False),
)

adapters = Table(
    "adapters",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("number", Integer, nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
    Column("uri", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("snapshot", String(64)),
    Column("parent", String(255)),
    Column("reference", String(255), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("manifest", JSON, nullable=False),
)

gates = Table(
    "gates",
    metadata,
    Column("adapter", String(255), ForeignKey("adapters.name"), primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("snapshot", String(64), nullable=False),
    Column("decision", String(32), nullable=False),
    Column("reasons", JSON, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("answers", JSON, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("alias", String(32), primary_key=True),
    Column("adapter", String(255), nullable=False),
    Column("changed_at", Double, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("stage", String(16), nullable=False),
    Column("started_at", Double, nullable=False),
    Column("stage_started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("snapshot", String(64)),
    Column("adapter", String(255)),
    Column("rollout", String(64)),
    Column("outcome", String(32)),
    Column("reason", Text),
    Column("came_before", BigInteger, nullable=False, server_default="0"),  # the total `came` when it began
    Column("attempts", Integer, nullable=False),
    Column("stage_s", JSON, nullable=False),
    Column("candidates", JSON, nullable=False, server_default="[]"),  # in turn, and what came of each
    Index("ix_rounds_adapter", "adapter"),
)

trainings = Table(
    "trainings",
    metadata,
    Column("run", String(255), primary_key=True),
    Column("round", Integer, index=True),  # which has a run of each candidate; null: by hand
    Column("snapshot", String(64), nullable=False),
    Column("adapter", String(255)),
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("figures", JSON, nullable=False),
    Column("history", JSON, nullable=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("champion", String(255), nullable=False),
    Column("challenger", String(255), nullable=False),
    Column("salt", String(64), nullable=False),
    Column("stage", Integer, nullable=False),
    Column("weight", Double, nullable=False),
    Column("status", String(16), nullable=False),
    Column("started_at", Double, nullable=False),
    Column("stage_started_at", Double, nullable=False),
    Column("stage_started_seq", BigInteger, nullable=False, server_default="0"),
    Column("started_seq", BigInteger, nullable=False, server_default="0"),
    Column("ended_at", Double),
    Column("reason", Text),
    Column("level", Double, nullable=False, server_default="0"),  # of the lifetime's budget; 0: of before there was one
    Column("by_evidence", Boolean, nullable=False, server_default=true()),  # false where an operator ended it
    Column("rules", JSON(none_as_null=True)),  # the config section that it goes on under
    Column("kind", String(16), nullable=False, server_default="test"),
    Column("watch", JSON(none_as_null=True)),  # of a holdback: the detector's state; of a test: why it asked
    Column("status_at", Double),  # when it was last paused or resumed
    Column("asked", JSON, nullable=False, server_default="[]"),  # criteria of its stage on which a person was asked
    Column("budget_reset", Integer),  # the reset that ended the life it was of; null: it is of the present one
)

budget_resets = Table(
    "budget_resets",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("who", String(255), nullable=False),  # a principal
    Column("why", Text, nullable=False),
)

trials = Table(
    "trials",
    metadata,
    Column("rollout", String(64), ForeignKey("rollouts.id"), primary_key=True),
    Column("stage", Integer, primary_key=True),
    Column("user", USER, primary_key=True),
    Column("challenger", Boolean, nullable=False),
    Column("known", Boolean, nullable=False),  # first seen before the test, or all are by its rules
    Column("first_at", Double, nullable=False),  # of the first answer
    Column("first_seq", BigInteger, nullable=False),
    Column("faults", JSON, nullable=False, server_default="[]"),  # of the first answer
    Column("place", Integer),  # in the order in which trials settled; null until then
    Column("settled_at", Double),
    Column("outcome", Double),
    Column("react_by", Double),  # when it is read what the user did about answers; null: nobody reads it
    Column("reactions", JSON(none_as_null=True)),  # null until then
    Index("ix_trials_user", "user"),
)
SETTLED = trials.c.place.is_not(None)
UNREAD = trials.c.react_by.is_not(None) & trials.c.reactions.is_(None)
Index(
    "ix_trials_place",
    trials.c.rollout,
    trials.c.stage,
    trials.c.place,
    unique=True,
    sqlite_where=SETTLED,
    postgresql_where=SETTLED,
)
Index(
    "ix_trials_react_by",
    trials.c.rollout,
    trials.c.stage,
    trials.c.react_by,
    sqlite_where=UNREAD,
    postgresql_where=UNREAD,
)

exposures = Table(
    "exposures",
    metadata,
    Column("rollout", String(64), ForeignKey("rollouts.id"), primary_key=True),
    Column("stage", Integer, primary_key=True),
    Column("challenger", Boolean, primary_key=True),
    *(
        Column(name, Integer, nullable=False, server_default="0")
        for name in ("users", "known", *FAULTS, "observed", *REACTIONS, *SOLICITED)
    ),
)

arrivals = Table(  # answers of a test that have not been counted yet
    "arrivals",
    metadata,
    Column("rollout", String(64), primary_key=True),
    Column("completion_id", String(64), ForeignKey("completions.id", ondelete="CASCADE"), primary_key=True),
    Column("faults", JSON, nullable=False, server_default="[]"),  # of its words
)

voters = Table(  # who has judged in a test, until their trial is settled
    "voters",
    metadata,
    Column("rollout", String(64), primary_key=True),
    Column("user", USER, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),  # of what they said: a row each time
    Column("due_at", Double),  # null until it is known
    Index("ix_voters_due_at", "rollout", "due_at"),
)

rollout_points = Table(
    "rollout_points",
    metadata,
    Column("rollout", String(64), ForeignKey("rollouts.id"), primary_key=True),
    Column("at", Double, primary_key=True),
    Column("stage", Integer, nullable=False),
    Column("n_champion", Integer, nullable=False),
    Column("up_champion", Double, nullable=False),
    Column("n_challenger", Integer, nullable=False),
    Column("up_challenger", Double, nullable=False),
    Column("low", Double, nullable=False),
    Column("high", Double, nullable=False),
    Column("exposed_champion", Integer, nullable=False, server_default="0"),
    Column("exposed_challenger", Integer, nullable=False, server_default="0"),
    Column("evidence", JSON, nullable=False, server_default="{}"),  # of what is watched: its log evidence by name
)

replicas = Table(
    "replicas",
    metadata,
    Column("replica", String(255), primary_key=True),
    Column("node", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("held", JSON, nullable=False),
    Column("errors", JSON, nullable=False),
    Column("heartbeat_at", Double, nullable=False),
    Column("steady_since", Double, nullable=False, server_default="0"),  # 0: told by a program that knew no breaks
    Column("dtype", String(16), nullable=False, server_default="auto"),
    Column("dtype_why", Text, nullable=False, server_default=""),
)

requests = Table(
    "requests",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("created_at", Double, nullable=False),
    Column("action", String(32), nullable=False),
    Column("target", String(255)),
    Column("who", String(255)),  # the principal; null where the act keeps no name
    Column("expires_at", Double),  # by the store's clock; null: never
    Column("handled_at", Double),
    Column("refused", Boolean, nullable=False, server_default=false()),
    Column("result", Text),
)

compatibility = Table("compatibility", metadata, Column("oldest", String(8), nullable=False))

leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("expires_at", Double, nullable=False),
)
