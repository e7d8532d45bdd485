"""Feedback in files: TRL's unpaired preference format in and out (JSON lines, gzip or plain).

A row is {"prompt": ..., "completion": ..., "label": bool}; prompt and completion are strings or lists of chat messages.
Optional: "user" or "conversation" (whose row it is, the unit of the holdout split), "created_at" (seconds since the
epoch). Reference: TRL's documentation, "Dataset formats and types", unpaired preference.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

from kto_ray.records.completions import Arm, Completion, Message
from kto_ray.records.examples import Example
from kto_ray.records.feedback import Feedback, FeedbackKind

Imported = tuple[Completion, Feedback]


def read_unpaired(path: str | Path) -> list[Imported]:
    """Read and check a whole file before anything is stored.

    Ids are derived from the content, so importing the same file again adds nothing.

    Raises:
        ValueError: the file is missing, empty or not gzip, or a line is broken; the message names the line and the fix.
    """
    rows: list[Imported] = []
    now = time.time()
    try:
        with _open(Path(path)) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.append(_row(line, f"{path}, line {number}", now))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; give a file of JSON lines, plain or .gz") from None
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, IsADirectoryError) as error:
        raise ValueError(f"{path} cannot be read as JSON lines: {error}; nothing was imported") from None
    if not rows:
        raise ValueError(f"{path} holds no rows; nothing was imported")
    return rows


def write_unpaired(examples: Sequence[Example], file: IO[str]) -> None:
    """Write examples as rows that `read_unpaired` and TRL read."""
    for example in examples:
        row = {
            "prompt": [dict(m) for m in example.messages],
            "completion": [{"role": "assistant", "content": example.answer}],
            "label": example.desirable,
            "user": example.user,
            "source": example.source,
            "adapter": example.adapter,
            "created_at": example.created_at,
        }
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _open(path: Path) -> IO[str]:
    with path.open("rb") as probe:
        zipped = probe.read(2) == b"\x1f\x8b"
    return cast(IO[str], gzip.open(path, "rt", encoding="utf-8") if zipped else path.open(encoding="utf-8"))


def _row(line: str, where: str, now: float) -> Imported:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}); nothing was imported, mend the line") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a row must be an object, got {type(row).__name__}; nothing was imported")
    label = row.get("label")
    if not isinstance(label, bool):
        raise ValueError(f"{where}: label must be true or false, got {label!r}; nothing was imported")
    messages = _messages(row.get("prompt"), "prompt", "user", where)
    answer = "".join(str(m["content"]) for m in _messages(row.get("completion"), "completion", "assistant", where))
    key = hashlib.sha256(json.dumps([messages, answer, label], sort_keys=True).encode()).hexdigest()[:32]
    user = row.get("user") or row.get("conversation")
    created_at = row.get("created_at", now)
    if not isinstance(created_at, int | float):
        raise ValueError(f"{where}: created_at must be seconds since the epoch, got {created_at!r}")
    completion = Completion(
        id=f"import-{key}",
        created_at=float(created_at),
        model="import",
        adapter="import",
        arm=Arm.IMPORT,
        messages=tuple(messages),
        text=answer,
        finish_reason="stop",
        prompt_tokens=0,
        completion_tokens=0,
        user=str(user) if user is not None else None,
    )
    thumb = Feedback(
        id=f"fb-import-{key}",
        created_at=float(created_at),
        kind=FeedbackKind.THUMB,
        completion_id=completion.id,
        user=completion.user,
        value=label,
    )
    return completion, thumb


def _messages(value: Any, field: str, role: str, where: str) -> list[Message]:
    """A prompt or completion as chat messages; a plain string becomes one message of the given role."""
    if isinstance(value, str) and value.strip():
        return [{"role": role, "content": value}]
    if isinstance(value, list) and value and all(_is_message(m) for m in value):
        return value
    raise ValueError(
        f"{where}: {field} must be a non-empty string or a list of {{role, content}} messages, got "
        f"{repr(value)[:80]}; nothing was imported"
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
