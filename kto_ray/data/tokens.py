"""Prompt and answer as token ids, exactly as TRL's KTOTrainer makes them (`KTOTrainer._prepare_dataset`)."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kto_ray.records.completions import Json, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str, ended: bool = True
) -> tuple[list[int], list[int]] | None:
    """(prompt ids, completion ids), untruncated; None when the chat template refuses the conversation.

    An answer that was cut off (`ended` false) loses the end-of-turn token that the template appends: the policy never
    chose it, and a thumb down would teach that ending is bad.

    The completion starts where the renderings of the prompt (with the generation prompt) and of the whole
    conversation part, since some templates render the prompt's end differently when an answer follows.
    """
    return encode_many(tokenizer, [messages], [answer], [ended])[0]


def encode_many(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    answers: Sequence[str],
    ended: Sequence[bool],
) -> list[tuple[list[int], list[int]] | None]:
    """`encode` of many rows, with one call of the tokenizer."""
    rendered = [_render(tokenizer, *row) for row in zip(conversations, answers, strict=True)]
    texts = [text for pair in rendered if pair for text in pair]
    if not texts:
        return [None] * len(rendered)
    # As `apply_chat_template` does: the template has placed the special tokens.
    ids = iter(tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"])
    return [
        _parted(next(ids), next(ids), end, tokenizer.eos_token_id) if pair else None
        for pair, end in zip(rendered, ended, strict=True)
    ]


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str) -> tuple[str, str] | None:
    """The prompt and the whole conversation as text; None when the template refuses it."""
    from jinja2 import TemplateError

    prompt = [plain for plain in map(_plain, messages) if plain is not None]
    if len(prompt) < len(messages):
        return None
    whole = [*prompt, {"role": "assistant", "content": answer}]
    try:
        return (
            tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True),
            tokenizer.apply_chat_template(whole, tokenize=False),
        )
    except TemplateError:  # templates raise it for conversations out of their form, such as two user turns in a row
        return None


def _parted(
    head: list[int], full: list[int], ended: bool, end_of_turn: int | None
) -> tuple[list[int], list[int]] | None:
    if full[: len(head)] == head:
        common = len(head)
    else:
        differ = (i for i, (a, b) in enumerate(zip(head, full, strict=False)) if a != b)
        common = next(differ, len(full))
    completion = full[common:]
    if not ended and end_of_turn in completion:
        completion = completion[: len(completion) - 1 - completion[::-1].index(end_of_turn)]
    return (head[:common], completion) if completion else None


def _plain(message: Message) -> Json | None:
    """The message with its content as one string, as the server renders it; None for images and the like."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return {**message, "content": content}
    if all(part.get("type") == "text" for part in content):
        return {**message, "content": "\n".join(part["text"] for part in content)}
    return None
