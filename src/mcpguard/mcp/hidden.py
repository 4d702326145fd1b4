"""Characters that a person does not see and a model reads."""

from __future__ import annotations

import re

# Flags of regions are spelled with tag characters; joiners hold emoji together and shape the letters of several scripts. What
# is honest by itself spells something in a row.
_FLAG = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{2,8}\U000e007f")
_JOINED = re.compile("(?<=[^\\x00-\u024f\u200c\u200d])[\u200c\u200d](?=[^\\x00-\u024f\u200c\u200d])")
_HIDDEN = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e01ef]"
)
# One behind a character chooses how that looks.
_SELECTORS = re.compile("(?<=[\ufe00-\ufe0f])[\ufe00-\ufe0f]")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_MARKS = re.compile("(?<![\u200e\u200f\u061c])[\u200e\u200f\u061c](?![\u200e\u200f\u061c])")


def hidden(text: str) -> str:
    """The hidden characters as `U+200B, U+E0041`, at most five and a number; empty where there are none."""
    text = _JOINED.sub("", _FLAG.sub("", text))
    if _RIGHT_TO_LEFT.search(text):
        text = _MARKS.sub("", text)
    found = list(dict.fromkeys((*_HIDDEN.findall(text), *_SELECTORS.findall(text))))
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return ", ".join(f"U+{ord(char):04X}" for char in found[:5]) + more
