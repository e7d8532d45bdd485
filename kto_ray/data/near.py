"""Nearly the same text: MinHash signatures over word shingles, and the hashes that bring likely pairs together.

A row is compared by its answer and by as much of the conversation's end as the answer is long, so that neither a long
common context makes two answers alike nor a stock answer two questions. Signatures are datasketch's (MinHash, Broder
1997); the driver keeps a byte of each value (b-bit minwise hashing, Li & König 2010) and the band hashes of LSH (Mining
of Massive Datasets, chapter 3).
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kto_ray.records.completions import Message

PERMUTATIONS = 64
SHINGLE = 3  # words
MIN_WORDS = 5  # of an answer; shorter ones are compared whole only, by the exact filter
SEED = 1
# A missed pair costs more than a false one: every pair that a band brings together is checked by its signature.
WEIGHTS = (0.02, 0.98)  # of false positives and of false negatives

Hashes = NDArray[np.uint64]
Bytes = NDArray[np.uint8]

_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def mixed(values: Hashes) -> Hashes:
    """Spread integers over 64 bits (splitmix64's finalizer): a fixed bijection, so equal stays equal."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def sketch(texts: Sequence[tuple[Sequence[Message], str]], threshold: float) -> tuple[Hashes, Bytes]:
    """What finds nearly equal rows among millions.

    Args:
        texts: conversation and answer of n rows.
        threshold: the Jaccard similarity from which two rows are nearly the same; 1 makes no sketch.

    Returns:
        (n, bands) hashes, of which two rows share at least one if they are likely to be nearly the same, and (n,
        PERMUTATIONS) bytes for `alike`. A row too short to compare has zeros; with threshold 1 both are (n, 0).
    """
    if threshold >= 1:
        return np.empty((len(texts), 0), np.uint64), np.empty((len(texts), 0), np.uint8)
    from datasketch import MinHash  # here, for scipy comes with it, and who only names a user needs neither

    bands, rows = _bands(threshold)
    shingled = [_shingles(messages, answer) for messages, answer in texts]
    signatures = np.zeros((len(texts), PERMUTATIONS), np.uint64)
    long_enough = [i for i, shingles in enumerate(shingled) if shingles]
    made: Iterator[Any] = MinHash.generator(
        (shingled[i] for i in long_enough), num_perm=PERMUTATIONS, seed=SEED, hashfunc=_itself
    )
    for i, signature in zip(long_enough, made, strict=True):
        signatures[i] = signature.hashvalues
    hashes = np.zeros((len(texts), bands), np.uint64)
    for band in range(bands):
        for value in signatures[:, band * rows : (band + 1) * rows].T:
            hashes[:, band] = mixed(hashes[:, band] * _MULTIPLIER + value + np.uint64(band + 1))
    hashes[[i for i, shingles in enumerate(shingled) if not shingles]] = 0
    return hashes, (signatures & np.uint64(0xFF)).astype(np.uint8)


def alike(one: Bytes, other: Bytes, threshold: float) -> NDArray[np.bool_]:
    """Whether rows are nearly the same, by the estimated Jaccard similarity of their signatures.

    Args:
        one, other: (n, PERMUTATIONS) bytes of `sketch`. Bytes of different values agree by chance once in 256.

    Returns:
        (n,); the estimate's standard error at 0.9 is 0.04.
    """
    agree = (one == other).mean(axis=1)
    result: NDArray[np.bool_] = (agree - 1 / 256) / (1 - 1 / 256) >= threshold
    return result


@functools.cache
def _bands(threshold: float) -> tuple[int, int]:
    from datasketch import MinHashLSH

    lsh = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=WEIGHTS)
    return lsh.b, lsh.r


def _shingles(messages: Sequence[Message], answer: str) -> list[int]:
    """Hashes of the runs of SHINGLE words; empty for a short answer."""
    words = _words(answer)
    if len(words) < MIN_WORDS:
        return []
    tail: list[str] = []
    for message in reversed(messages):
        tail = _words(_text(message.get("content"))) + tail
        if len(tail) >= len(words):
            break
    hashes = np.fromiter((zlib.crc32(word.encode()) for word in tail[-len(words) :] + words), np.uint32)
    mixed_words = hashes[:-2] * np.uint32(961) + hashes[1:-1] * np.uint32(31) + hashes[2:]
    shingles: list[int] = mixed_words.tolist()
    return shingles


def _text(content: Any) -> str:
    """What of a content can be read, whatever a client sent."""
    parts = content if isinstance(content, list) else [content]
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "\n".join(text for text in texts if isinstance(text, str))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _itself(value: int) -> int:
    return value
