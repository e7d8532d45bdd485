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
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from kto_ray.records.completions import Arm, Completion, Json, Message
from kto_ray.records.examples import Example
from kto_ray.records.feedback import Feedback, FeedbackKind

Imported = tuple[Completion, Feedback]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MOST_USER = 255  # characters of a user's name
DAY_S, YEAR_S = 86_400.0, 31_556_952.0


def read_unpaired(path: str | Path) -> list[Imported]:
    """Read and check a whole file before anything is stored.

    Ids are derived from the content, so importing the same file again adds nothing. Where a user judges the same prompt
    and answer twice, the later time stands, or the later line.

    Raises:
        ValueError: the file is missing, empty or not gzip, or a line is broken; the message names the line and the fix.
    """
    rows: dict[str, Imported] = {}
    now = time.time()
    try:
        with _open(Path(path)) as file:
            for number, line in enumerate(file, start=1):
                if line.strip("\ufeff \t\r\n"):  # files with a byte order mark may have been joined
                    row = _row(line.strip("\ufeff"), f"{path}, line {number}", now)
                    known = rows.get(row[0].id)
                    if known is None or known[1].created_at <= row[1].created_at:
                        rows[row[0].id] = row
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; give a file of JSON lines, plain or .gz") from None
    except (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError, IsADirectoryError) as error:
        raise ValueError(f"{path} cannot be read as JSON lines: {error}; nothing was imported") from None
    if not rows:
        raise ValueError(f"{path} holds no rows; nothing was imported")
    return list(rows.values())


def write_unpaired(examples: Sequence[Example], file: IO[str]) -> None:
    """Write examples as rows that `read_unpaired` and TRL read."""
    for example in examples:
        calls = {"tool_calls": [dict(call) for call in example.tool_calls]} if example.tool_calls else {}
        row = {
            "prompt": [dict(m) for m in example.messages],
            "completion": [{"role": "assistant", "content": example.answer, **calls}],
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
    row = _parsed(line, where)
    label = row.get("label")
    if not isinstance(label, bool):
        _refuse(where, f"label must be true or false, got {label!r}")
    prompt = _messages(row.get("prompt"), "prompt", "user", where)
    *before, last = _messages(row.get("completion"), "completion", "assistant", where)
    answer, calls = _text(last.get("content")), _calls(last.get("tool_calls"), where)
    if last["role"] != "assistant" or not (answer.strip() or calls):
        _refuse(where, f"completion must end with words or tool calls of the assistant, got {_short(last)}")
    messages = [*prompt, *before]
    # Rows of one prompt that name nobody are one user's: a prompt is not on both sides of the holdout.
    user = _user(row, where) or f"import-{_digest(prompt)}"
    created_at = _time(row.get("created_at", now), where, now)
    key = _digest([messages, answer, user, *calls])
    completion = Completion(
        id=f"import-{key}",
        created_at=created_at,
        model="import",
        adapter="import",
        arm=Arm.IMPORT,
        messages=tuple(messages),
        text=answer,
        tool_calls=tuple(calls),
        finish_reason="tool_calls" if calls else "stop",
        prompt_tokens=0,
        completion_tokens=0,
        user=user,
    )
    thumb = Feedback(
        id=f"fb-import-{key}-{'up' if label else 'down'}",
        created_at=created_at,
        kind=FeedbackKind.THUMB,
        completion_id=completion.id,
        user=user,
        value=label,
    )
    return completion, thumb


def _parsed(line: str, where: str) -> Mapping[str, Any]:
    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number")

    try:
        row = json.loads(line, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); nothing was imported, mend the line") from None
    if not isinstance(row, dict):
        _refuse(where, f"a row must be an object, got {type(row).__name__}")
    text = json.dumps(row, ensure_ascii=False)
    if "\\u0000" in text.replace("\\\\", ""):
        _refuse(where, "a text holds the character NUL, which no store keeps")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        _refuse(where, f"a text holds half a character (a lone surrogate, {text[error.start]!r})")
    return cast(Mapping[str, Any], row)


def _messages(value: Any, field: str, role: str, where: str) -> list[Message]:
    """A prompt or completion as chat messages; a plain string becomes one message of the given role."""
    if isinstance(value, str) and value.strip():
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        _refuse(where, f"{field} must be a non-empty string or a list of messages, got {_short(value)}")
    for number, message in enumerate(value):
        name = f"{field}[{number}]"
        if not isinstance(message, dict):
            _refuse(where, f"{name} must be a message {{role, content}}, got {_short(message)}")
        if message.get("role") not in ROLES:
            _refuse(where, f"{name}.role must be one of {', '.join(ROLES)}, got {_short(message.get('role'))}")
        if not _is_content(message):
            _refuse(where, f"{name}.content must be a string or a list of parts, got {_short(message.get('content'))}")
    return value


def _is_content(message: Message) -> bool:
    """A text, a list of parts, or nothing, as where tools are called instead."""
    content = message.get("content")
    if isinstance(content, list):
        return all(isinstance(p, dict) and (p.get("type") != "text" or isinstance(p.get("text"), str)) for p in content)
    return content is None or isinstance(content, str)


def _text(content: Any) -> str:
    """The words of a content; parts that are no text have none."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part.get("type") == "text")
    return content or ""


def _calls(value: Any, where: str) -> list[Json]:
    if value is not None and not (
        isinstance(value, list) and all(isinstance(c, dict) and isinstance(c.get("function"), dict) for c in value)
    ):
        _refuse(where, f"tool_calls must be a list of {{id, type, function}}, got {_short(value)}")
    return value or []


def _user(row: Mapping[str, Any], where: str) -> str | None:
    for field in ("user", "conversation"):
        value = row.get(field)
        if value is None or value == "":
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            _refuse(where, f"{field} must be a string, got {_short(value)}")
        if len(str(value)) > MOST_USER:
            _refuse(where, f"{field} has {len(str(value))} characters, above {MOST_USER}; hash it")
        return str(value)
    return None


def _time(value: Any, where: str, now: float) -> float:
    """Seconds since the epoch, of the past: the holdout and the window go by them."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < 1e19:  # NaN is neither
        _refuse(where, f"created_at must be seconds since the epoch, got {value!r}")
    if value > now + DAY_S:
        units = {"milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
        meant = next(
            (f"; as {unit} it is past: divide by {by:.0f}" for unit, by in units.items() if value / by <= now), ""
        )
        year = 1970 + int(value / YEAR_S)
        _refuse(where, f"created_at must be seconds since the epoch, got {value!r}, which is the year {year}{meant}")
    return float(value)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _short(value: Any) -> str:
    return repr(value)[:80]


def _refuse(where: str, why: str) -> NoReturn:
    raise ValueError(f"{where}: {why}; nothing was imported, mend the line")
