"""What a person can see of a text: two texts that look alike are one answer, and one that shows nothing is empty. Pure.

Texts are stored and trained as they came (edits with "\\n" for every line end); this decides only whether they differ.
"""

from __future__ import annotations

import re
import unicodedata

# Characters that show nothing wherever they stand: of Unicode's category Cf those that only steer how a line is broken
# or laid out, and fillers. Written out, so that a label is the same by every version of Python.
_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001"
)
# Joiners (ZWNJ, ZWJ) show between two characters of a script that shapes them, and in an emoji; elsewhere, as at the
# end of a word or among Latin letters, they do not.
_JOINERS, _SHAPED = "\u200c\u200d", "\u0300-\u1fff\u2190-\u2fff\u3001-\U000dffff"
_TAGS = "\U000e0020-\U000e007f"  # they show after the black flag, which they make a region's
_SUSPECT = re.compile(f"[{_INVISIBLE}{_JOINERS}{_TAGS}]")  # most texts have none of these
_NOTHING = (
    re.compile(f"[{_INVISIBLE}]"),
    re.compile(f"(?<![{_SHAPED}])[{_JOINERS}]|[{_JOINERS}](?![{_SHAPED}])"),
    re.compile(f"(?<![\U0001f3f4{_TAGS}])[{_TAGS}]+"),
)


def with_line_feeds(text: str) -> str:
    """A text whose every line end is "\\n", whatever system it was typed on."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def seen(text: str) -> str:
    """The one form of all texts that look like this one; empty where there is nothing to see."""
    text = with_line_feeds(text)
    if text.isascii():
        return text.strip()
    if _SUSPECT.search(text):
        for nothing in _NOTHING:
            text = nothing.sub("", text)
    return unicodedata.normalize("NFC", text).strip()
