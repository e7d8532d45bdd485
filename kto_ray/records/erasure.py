"""What is erased, and what that took: told by DELETE /v1/users/{user} and `kto-ray erase`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kto_ray.records.lineage import RowsIn


@dataclass(frozen=True, slots=True)
class Subject:
    """All that is kept of a user, or one completion, all that was said of it, and the later turns that quote it."""

    kind: Literal["user", "completion"]
    name: str


@dataclass(frozen=True, slots=True)
class ErasedRows:
    """Rows of the store."""

    completions: int  # that the user asked for
    feedback: int  # that they gave, on anyone's completions or still pending
    feedback_of_others: int  # on their completions, with which it goes: it judges, and may quote, an answer to them


@dataclass(frozen=True, slots=True)
class AffectedAdapter:
    """A version that learnt from what was erased, or started from one that did. It serves while it has an alias."""

    adapter: str
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AffectedRound:
    """The round in progress, where it is sealing a snapshot or holds an affected one; the loop ends it, or begins its
    stage anew."""

    round: int
    stage: str


@dataclass(frozen=True, slots=True)
class Erasure:
    """What an erasure takes, or has taken. `later` are the turns after a completion that quoted it and went with it, by
    their ids; `unknown` are snapshots whose rows were deleted before for another's sake,
    which cannot be asked any more; `asked` is what the loop was asked to do, `remains` what this erasure could not
    reach, in words."""

    kind: Literal["user", "completion"]
    id: str
    rows: ErasedRows
    archived: int  # of its completions, those whose text was in archives
    snapshots: tuple[RowsIn, ...]
    adapters: tuple[AffectedAdapter, ...]
    rounds: tuple[AffectedRound, ...]
    later: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    remains: tuple[str, ...] = ()
