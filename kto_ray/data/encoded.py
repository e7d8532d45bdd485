"""A block of rows as token ids: those of the engine where it told them, of which the texts are not looked at."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kto_ray.data import tokens
from kto_ray.data.shards import HOLDOUT_SCHEMA

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

FAULTS = ("", "unrenderable", "too_long")  # why a row cannot be trained on, by code
SCHEMA = HOLDOUT_SCHEMA.append(pa.field("id", pa.uint64())).append(pa.field("fault", pa.int8()))
TOLD = 20  # completions that a warning names
WIDTH = 4  # bytes of an id
_IDS = pa.list_(pa.int32())


def block(rows: pa.Table, tokenizer: Callable[[], PreTrainedTokenizerBase], max_length: int) -> pa.Table:
    """Rows with their ids, as columns of SCHEMA; in an order of its own.

    Args:
        rows: SCHEMA's columns but the ids, and the texts and `read_ids`, `said_ids` of `passes.read_rows`.
        tokenizer: loads it; called only where there are texts to tokenize.
        max_length: answers are cut to it, and a prompt of that length leaves no room for one.
    """
    told = pa.array(_told(rows, max_length))
    known, unknown = rows.filter(told), rows.filter(pc.invert(told))
    parts = [_table(known, _lists(known["read_ids"]), _lists(known["said_ids"]), np.zeros(len(known), np.int8))]
    if len(unknown):
        parts.append(_made(unknown, tokenizer(), max_length))
    return pa.concat_tables(parts)


def _told(rows: pa.Table, max_length: int) -> NDArray[np.bool_]:
    """Where the engine's ids are all that is needed."""
    read, said = (_lengths(rows[name]) for name in ("read_ids", "said_ids"))
    whole = (read >= 0) & (read < max_length) & (said > 0) & (said <= max_length)
    found: NDArray[np.bool_] = whole & ~rows["reasoned"].to_numpy()
    return found


def _lengths(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Ids of each row, -1 where it has none."""
    lengths: NDArray[np.int64] = pc.fill_null(pc.binary_length(column), -WIDTH).to_numpy().astype(np.int64) // WIDTH
    return lengths


def _lists(column: pa.ChunkedArray) -> pa.Array:
    """Packed ids as lists, without a look at one of them."""
    packed = column.combine_chunks()
    if isinstance(packed, pa.ChunkedArray):  # of no chunk
        return pa.array([], _IDS)
    _, ends, data = packed.buffers()
    at = np.frombuffer(ends, np.int32)[packed.offset : packed.offset + len(packed) + 1]
    values = np.frombuffer(data or b"", np.uint8)[at[0] : at[-1]].copy().view("<i4")
    return pa.ListArray.from_arrays(pa.array((at - at[0]) // WIDTH, pa.int32()), pa.array(values, pa.int32()))


def _made(rows: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> pa.Table:
    every = tokens.encode_many(tokenizer, _as_rows(rows))
    lost = [name for name, ids in zip(rows["completion_id"].to_pylist(), every, strict=True) if ids is None]
    if lost:
        logger.warning("left out, for they cannot be rendered: %s", ", ".join(lost[:TOLD]))
    faults = np.array([1 if ids is None else 2 * (len(ids[0]) >= max_length) for ids in every], np.int8)
    usable = [ids if ids is not None and not fault else ([], []) for ids, fault in zip(every, faults, strict=True)]
    prompts = pa.array([prompt for prompt, _ in usable], _IDS)
    return _table(rows, prompts, pa.array([answer[:max_length] for _, answer in usable], _IDS), faults)


def _table(rows: pa.Table, prompts: pa.Array, answers: pa.Array, faults: NDArray[np.int8]) -> pa.Table:
    kept = {name: rows[name] for name in SCHEMA.names if name in rows.column_names}
    return pa.table(kept | {"prompt_ids": prompts, "completion_ids": answers, "fault": faults}, schema=SCHEMA)


def _as_rows(rows: pa.Table) -> list[tokens.Row]:
    names = ("messages", "answer", "ended", "created_at", "read_ids", "said_ids", "reasoned", "called", "shaped")
    return [
        tokens.Row(json.loads(messages), answer, ended, at, _ids(read), _ids(said), reasoned, called, shaped)
        for messages, answer, ended, at, read, said, reasoned, called, shaped in zip(
            *(rows[name].to_pylist() for name in names), strict=True
        )
    ]


def _ids(data: bytes | None) -> list[int] | None:
    ids: list[int] | None = None if data is None else np.frombuffer(data, "<i4").tolist()
    return ids
