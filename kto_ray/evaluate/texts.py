"""Figures on texts: whether an answer repeats itself, breaks off, or is of another length. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np


def repetition(text: str) -> float:
    """The share of word 3-grams that occurred before in the text: 0 for varied text, near 1 for a loop."""
    words = re.findall(r"\w+", text.lower())
    grams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def ends_in_loop(text: str) -> bool:
    """Whether the text's end is one unit again and again: at least 3 times and at least 16 characters in all.

    Works on characters, so it also sees "!!!!!!!!", a loop cut in mid-unit, and scripts without spaces.
    """
    tail = " ".join(text.lower().split())[-600:]
    for unit in range(1, len(tail) // 3 + 1):
        span = max(3 * unit, 16)
        if span <= len(tail) and tail[-span:-unit] == tail[-span + unit :]:
            return True
    return False


def repeats_itself(text: str, share: float = 0.3) -> bool:
    """A degenerate answer: it ends in a loop, or more than `share` of its word 3-grams are repeats."""
    return ends_in_loop(text) or repetition(text) > share


def looks_truncated(finish_reason: str | None, text: str) -> bool:
    """Whether an answer was cut off: the engine says "length", or says nothing and no sentence ends at its end."""
    if finish_reason is not None:
        return finish_reason == "length"
    return not re.search(r"[.!?…。！？:;)\]}\"'”’`*]\s*$", text)


def length_ratio(candidate: Sequence[int], champion: Sequence[int]) -> float:
    """Mean length of the candidate's answers over the champion's, in the caller's unit; a champion of empty answers
    counts as one unit long."""
    return float(np.mean(candidate) / max(float(np.mean(champion)), 1.0)) if candidate and champion else float("nan")
