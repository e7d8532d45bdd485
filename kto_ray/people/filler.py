"""A made-up crowd and its feedback, for stores of any size: the same rows for the same seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from kto_ray.config.serving import ModelSection
from kto_ray.data.tokens import Row, encode_many, load_tokenizer
from kto_ray.model import resolve_model
from kto_ray.store import Store, labels, sequence, tallies
from kto_ray.store.schema import completions, feedback
from kto_ray.store.tallies import Tally

CHUNK = 10_000  # examples of a transaction
DAY_S = 86_400.0
BEGAN_AT, EVERY_S = 1.7e9, 5.0  # the first feedback, and the next ones

EDITED, COMMENTED, REPEATED, RESAID, UP = 0.05, 0.05, 0.02, 0.02, 0.67  # shares of completions
COMMON = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word but "
    "not what all were we when your can said there use an each which she do how their if will up other about out many "
    "then them these so some her would make like him into time has look two more write go see number no way could "
    "people my than first water been call who oil its now find long down day did get come made may part over new sound "
    "take only little work know place year live me back give most very after thing our just name good sentence man "
    "think say great where help through much before line right too mean old any same tell boy follow came want show "
    "also around form three small set put end does another well large must big even such because turn here why ask "
    "went men read need land different home us move try kind hand picture again change off play spell air away animal "
    "house point page letter mother answer found study still learn should America world high every near add food"
)
VOCABULARY = COMMON.split()


def fill(
    store: Store, start: int, stop: int, seed: int, tell: Callable[[str], None], model: ModelSection | None = None
) -> None:
    """Store the examples `start` to `stop` of the crowd, with their completions and comments.

    Two thirds of the thumbs are up; few users say much and many say little; a twentieth are edits, which make two
    examples each; some rows repeat others, word for word or but for a word. Prompts have 30 words and answers 50, in
    the median, with long tails. With a model, completions hold the token ids that it would have read and said.
    """
    for low in range(start, stop, CHUNK):
        said, judged = _chunk(low, min(low + CHUNK, stop), seed)
        if model is not None:
            _add_ids(said, model)
        with store.write() as tx:
            if store.sqlite:
                tx.exec_driver_sql("PRAGMA cache_size=-262144")  # KiB: random ids touch all of an index
            numbers = iter(sequence.take(tx, len(said) + len(judged)))
            for row in (*said, *judged):
                row["seq"] = next(numbers)
            tx.execute(completions.insert(), said)
            tx.execute(feedback.insert(), judged)
            change = Tally(completions=len(said), stored=len(judged))
            tallies.add(tx, change + labels.refresh(tx, (row["id"] for row in said)))
        if (low - start) // CHUNK % 10 == 9:
            tell(f"stored {low + CHUNK} examples")


def _chunk(low: int, high: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of both tables that make the examples `low` to `high`."""
    rng = np.random.default_rng([seed, low])
    n = high - low
    prompts, answers = _texts(rng, n, 30, 200), _texts(rng, n, 50, 250)
    users = (max(high // 20, 1) * rng.random(n) ** 3).astype(int).tolist()
    kind, ups, comments = rng.random(n).tolist(), (rng.random(n) < UP).tolist(), (rng.random(n) < COMMENTED).tolist()
    said: list[dict[str, Any]] = []
    judged: list[dict[str, Any]] = []
    example = 0
    for i in range(n):
        if example == n:
            break
        edited = kind[i] < EDITED and example + 2 <= n
        if i and kind[i] > 1 - REPEATED:  # somebody's words again
            prompts[i], answers[i], ups[i] = prompts[i - 1], answers[i - 1], ups[i - 1]
        elif i and kind[i] > 1 - REPEATED - RESAID:
            prompts[i], answers[i], ups[i] = prompts[i - 1], answers[i - 1] + " indeed", ups[i - 1]
        name = f"chatcmpl-{hashlib.sha256(f'{seed} {low + i}'.encode()).hexdigest()[:32]}"
        at, user = BEGAN_AT + EVERY_S * (low + example), f"user-{users[i]}"
        said.append(_completion(name, at - 30, user, prompts[i], answers[i]))
        if edited:
            judged.append(_event(name, "edit", at, user, text=f"{answers[i]} {VOCABULARY[i % 150]}"))
        else:
            judged.append(_event(name, "thumb", at, user, value=ups[i]))
        if comments[i]:
            judged.append(_event(name, "comment", at + 1, user, comment="so it is"))
        example += 1 + edited
    return said, judged


def _add_ids(said: list[dict[str, Any]], model: ModelSection) -> None:
    tokenizer = load_tokenizer(resolve_model(model), model.revision)
    every = encode_many(tokenizer, [Row(row["messages"], row["text"]) for row in said])
    for row, ids in zip(said, every, strict=True):
        assert ids is not None, "these are words"
        row["prompt_ids"], row["answer_ids"] = (np.array(part, "<i4").tobytes() for part in ids)
        row["base"] = model.mark


def _texts(rng: np.random.Generator, n: int, median: int, most: int) -> list[str]:
    lengths = np.clip(median * np.exp(0.6 * rng.standard_normal(n)), 3, most).astype(int)
    drawn = np.array(VOCABULARY, object)[(len(VOCABULARY) * rng.random(int(lengths.sum())) ** 2).astype(int)].tolist()
    ends = np.cumsum(lengths).tolist()
    return [" ".join(drawn[end - length : end]) for end, length in zip(ends, lengths.tolist(), strict=True)]


def _completion(name: str, at: float, user: str, prompt: str, answer: str) -> dict[str, Any]:
    return {
        "id": name,
        "created_at": at,
        "model": "policy",
        "adapter": "policy@base",
        "arm": "champion",
        "status": "complete",
        "user": user,
        "messages": [{"role": "user", "content": prompt}],
        "params": {"temperature": 0.6, "top_p": 0.9},
        "text": answer,
        "finish_reason": "stop",
        "prompt_tokens": 40,
        "completion_tokens": 60,
        "latency_s": 1.0,
    }


def _event(
    of: str, kind: str, at: float, user: str, value: bool | None = None, text: str | None = None, comment: str = ""
) -> dict[str, Any]:
    return {
        "id": f"fb-{kind}-{of}",
        "created_at": at,
        "kind": kind,
        "completion_id": of,
        "named_completion": of,
        "user": user,
        "value": value,
        "text": text,
        "reason_codes": [],
        "comment": comment or None,
        "tags": {},
    }
