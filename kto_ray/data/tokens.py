"""Prompt and answer as token ids: those of the engine, or, for edits and imports, as the engine would have had them.

What was served is what is trained. Only a text that no engine read or said is tokenized here: its prompt is rendered by
the chat template as vLLM renders it (`vllm.renderers.chat_utils`), and its answer is what a model would say: the text,
in which no mark of a turn is one, and the token that ends a turn.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kto_ray.records.completions import Json, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Ids = tuple[list[int], list[int]]  # of prompt and answer


@functools.cache
def load_tokenizer(model_path: str, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a local model directory or a Hugging Face id, once per process.

    Raises:
        ValueError: it has no chat template.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path, revision=revision or "main")
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of model {model_path!r} has no chat template, so a conversation cannot be rendered; "
            "use an instruct model or add chat_template.jinja to its directory"
        )
    return tokenizer


def hashes(model_path: str, revision: str | None) -> tuple[str, str]:
    """SHA-256 of the tokenizer and of its chat template, 16 hex digits each."""
    tokenizer = load_tokenizer(model_path, revision)
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).iterdir()):
            if file.name != "tokenizer_config.json":  # it tells where the tokenizer was loaded from
                data = file.read_bytes()
                digest.update(f"{file.name}\0{len(data)}\0".encode() + data)
    template = str(tokenizer.chat_template)
    return digest.hexdigest()[:16], hashlib.sha256(template.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Row:
    """What is to become tokens. Ids that are given are taken as they are."""

    messages: Sequence[Message]
    answer: str
    ended: bool = True  # False: cut off, so that the policy never chose to end its turn
    at: float = 0.0  # seconds since the epoch: the day that a template prints
    prompt_ids: Sequence[int] | None = None
    answer_ids: Sequence[int] | None = None
    reasoned: bool = False  # the answer's ids begin with a reasoning that is context, not answer
    called: bool = False  # it called tools: in its ids only, as the model said it
    shaped: bool = False  # its prompt holds more than the messages, tools say: in its ids only, as the model read it


@dataclass(frozen=True, slots=True)
class Turn:
    """What a chat template puts around an answer."""

    before: str  # a space, in some
    end: tuple[int, ...]  # one token, none where the tokenizer has none


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str, ended: bool = True
) -> Ids | None:
    """(prompt ids, answer ids) of a text, untruncated; None when the chat template refuses the conversation."""
    return encode_many(tokenizer, [Row(messages, answer, ended)])[0]


def encode_many(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Ids | None]:
    """`encode` of many rows, with two calls of the tokenizer; a row whose ids are known costs none."""
    prompts = _prompts(tokenizer, rows)
    answers = _answers(tokenizer, rows)
    return [
        None if prompt is None or not answer or _unsaid(row) else _without_reasoning(tokenizer, row, (prompt, answer))
        for row, prompt, answer in zip(rows, prompts, answers, strict=True)
    ]


def _unsaid(row: Row) -> bool:
    """Whether its text is not what the model said: that has calls, and no ids tell them from a reasoning."""
    return row.called and (row.answer_ids is None or row.reasoned)


def _prompts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[list[int] | None]:
    found: list[list[int] | None] = [None if row.prompt_ids is None else list(row.prompt_ids) for row in rows]
    rendered = {i: _rendered(tokenizer, rows[i]) for i, ids in enumerate(found) if ids is None}
    texts = {i: text for i, text in rendered.items() if text is not None}
    if texts:
        # As `apply_chat_template` does: the template has placed the special tokens.
        ids = tokenizer(list(texts.values()), add_special_tokens=False, return_attention_mask=False)["input_ids"]
        for i, prompt in zip(texts, ids, strict=True):
            found[i] = prompt
    return found


def _answers(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[list[int]]:
    said = [[] if row.answer_ids is None else list(row.answer_ids) for row in rows]
    unsaid = [i for i, row in enumerate(rows) if row.answer_ids is None]
    if unsaid:
        turn = turn_of(tokenizer)
        texts = [turn.before + rows[i].answer for i in unsaid]
        plain: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True}
        for i, ids in zip(unsaid, tokenizer(texts, return_attention_mask=False, **plain)["input_ids"], strict=True):
            said[i] = [*ids, *turn.end] if rows[i].ended else ids
    return said


@functools.cache
def turn_of(tokenizer: PreTrainedTokenizerBase) -> Turn:
    """What this tokenizer's template puts around an answer: it is shown one."""
    answer = "kto"
    asked: list[Any] = [{"role": "user", "content": "Hi"}]
    head = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    whole = str(tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": answer}], tokenize=False))
    before, _, after = whole.rpartition(answer)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ends = [i for i in tokenizer(after, add_special_tokens=False)["input_ids"] if i in special]
    end = ends[0] if ends else tokenizer.eos_token_id
    return Turn(before.removeprefix(head) if before.startswith(head) else "", () if end is None else (int(end),))


def _without_reasoning(tokenizer: PreTrainedTokenizerBase, row: Row, ids: Ids) -> Ids:
    """Where it is context: what was thought goes to the prompt. The answer is the shortest tail that reads as it."""
    prompt, answer = ids
    if not row.reasoned:
        return ids
    text = row.answer.strip()
    for start in range(len(answer) - 1, 0, -1):
        if str(tokenizer.decode(answer[start:], skip_special_tokens=True)).strip() == text:
            return [*prompt, *answer[:start]], answer[start:]
    return ids


def _rendered(tokenizer: PreTrainedTokenizerBase, row: Row) -> str | None:
    """The prompt as text; None when the template, or we, cannot render it. It prints the day of the row, not today."""
    messages = None if row.shaped else as_served(row.messages, str(tokenizer.chat_template))
    if messages is None:
        return None
    day = datetime.fromtimestamp(row.at, UTC)
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, strftime_now=day.strftime
            )
        )
    except Exception as error:  # a template is somebody's program: it may fail in any way at what it does not expect
        log.warning("a conversation cannot be rendered: %s", type(error).__name__)
        return None


def as_served(messages: Sequence[Message], template: str) -> list[dict[str, Any]] | None:
    """Messages as the engine hands them to the template; None for images and what else has no text.

    The parts of a content are joined by line breaks, arguments of tool calls are objects, and where the template does
    not know developers they are the system, which comes first.
    """
    plain = [_plain(message) for message in messages]
    found = [message for message in plain if message is not None]
    if len(found) < len(plain):
        return None
    if any(message["role"] == "developer" for message in found) and "developer" not in template:
        system = "\n\n".join(m["content"] for m in found if m["role"] in ("developer", "system") and m["content"])
        others = [m for m in found if m["role"] not in ("developer", "system")]
        return [{"role": "system", "content": system}, *others]
    return found


def _plain(message: Message) -> dict[str, Any] | None:
    content = message.get("content")
    parts = [content] if isinstance(content, str) else content or []
    if not isinstance(parts, list) or not isinstance(message.get("role"), str):
        return None
    texts = [part if isinstance(part, str) else _text(part) for part in parts]
    if None in texts:
        return None
    kept = {name: value for name, value in message.items() if value is not None and name != "tool_calls"}
    calls = message.get("tool_calls") or []
    return {
        **kept,
        "content": "\n".join(text for text in texts if text is not None),
        **({"tool_calls": [_call(call) for call in calls]} if isinstance(calls, list) and calls else {}),
    }


def _text(part: Any) -> str | None:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    return text if isinstance(text, str) else None


def _call(call: Any) -> Json:
    """Its arguments as an object, where they are the JSON text of one."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return dict(call) if isinstance(call, dict) else {}
    arguments = function.get("arguments") or "{}"
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        parsed = {}  # as the engine has it
    return {**call, "function": {**function, "arguments": parsed if isinstance(parsed, dict) else {}}}
