"""What is shown of a completion: GET /v1/completions/{id}."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from kto_ray.records.completions import Completion
from kto_ray.records.feedback import Feedback
from kto_ray.records.labels import Label
from kto_ray.store import completions, feedback, labels


@dataclass(frozen=True, slots=True)
class ShownCompletion(Completion):
    """The logged record, all that was said of it, the labels that this comes to, and the adapter versions that learnt
    from it (None: a snapshot cannot be read just now)."""

    feedback: tuple[Feedback, ...] = ()
    labels: tuple[Label, ...] = ()
    trained: tuple[str, ...] | None = ()


def one(tx: sa.Connection, completion_id: str) -> ShownCompletion | None:
    found = completions.get(tx, completion_id)
    if found is None:
        return None
    own = {name: getattr(found, name) for name in Completion.__slots__}
    own |= {"prompt_ids": None, "answer_ids": None}  # bytes for training, which JSON does not hold
    said, came_to = feedback.events(tx, completion_id), labels.of(tx, completion_id)
    return ShownCompletion(**own, feedback=tuple(said), labels=tuple(came_to))
