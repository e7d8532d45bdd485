"""What a person can see of a text: two texts that look alike are one answer, and one that shows nothing is empty. Pure.

Texts are stored and trained as they came (edits with "\\n" for every line end); this decides only whether they differ.
"""

from __future__ import annotations

import re
import unicodedata

# Characters that show nothing wherever they stand: of Unicode's category Cf those that only steer how a line is broken
# or laid out, and fillers. Written out, so that a label is the same by every version of Python.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001]"
)
# Joiners (ZWNJ, ZWJ) show between two characters of a script that shapes them, and in an emoji; elsewhere, as at the
# end of a word or among Latin letters, they do not.
_SHAPED = "\u0300-\u1fff\u2190-\u2fff\u3001-\U000dffff"
_LONE_JOINER = re.compile(f"(?<![{_SHAPED}])[\u200c\u200d]|[\u200c\u200d](?![{_SHAPED}])")
# Tags show after the black flag, which they make a region's.
_LONE_TAG = re.compile("(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0020-\U000e007f]+")


def with_line_feeds(text: str) -> str:
    """A text whose every line end is "\\n", whatever system it was typed on."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def seen(text: str) -> str:
    """The one form of all texts that look like this one; empty where there is nothing to see."""
    text = with_line_feeds(text)
    if not text.isascii():
        for nothing in (_INVISIBLE, _LONE_JOINER, _LONE_TAG):
            text = nothing.sub("", text)
        text = unicodedata.normalize("NFC", text)
    return text.strip()
