"""Held-out rows as a person reads them: what was asked from the store, what was answered from the row's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import sqlalchemy as sa

from kto_ray.config import Config
from kto_ray.data.tokens import load_tokenizer
from kto_ray.records.completions import Completion
from kto_ray.records.evaluation import HeldOut, Thumbed
from kto_ray.store import completions


def thumbed(tx: sa.Connection, config: Config, model_path: str, rows: Sequence[HeldOut], most: int) -> list[Thumbed]:
    """A fixed random choice of the rows, at most so many.

    Left out is what is no plain text (tools, parts), what archives hold, and what was erased since the snapshot.
    """
    ordered = sorted(rows, key=lambda row: row.example_id)
    chosen = Random(config.data.seed).sample(ordered, k=len(ordered))
    tokenizer = load_tokenizer(model_path, config.model.revision) if chosen and most else None
    found: list[Thumbed] = []
    for row in chosen:
        if len(found) >= most or tokenizer is None:
            break
        completion = completions.get(tx, row.completion)
        if completion is None or not _plain(completion):
            continue
        text = tokenizer.decode(row.tokens.completion, skip_special_tokens=True)
        found.append(Thumbed(row.user, completion.messages, text, row.desirable))
    return found


def _plain(completion: Completion) -> bool:
    texts = (isinstance(message.get("content"), str) for message in completion.messages)
    return bool(completion.messages) and all(texts) and not completion.tool_calls
