"""What a shell is told to execute: whether its text says which programs that is, or only the shell knows. Pure.

This does not read a shell's whole language. It looks at the words that stand where a command begins. Where the shell puts
such a word together, or reads commands from elsewhere, nobody else knows what it is; and what only looks so counts as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from mcpguard.model.values import dataclass

NAMES = frozenset(("sh", "bash", "dash", "zsh", "ksh"))
# Others have more of a language of their own, but put commands together by the same characters.
ALL = NAMES | {
    "ash",
    "rbash",
    "mksh",
    "lksh",
    "oksh",
    "pdksh",
    "posh",
    "yash",
    "csh",
    "tcsh",
    "fish",
    "nu",
    "pwsh",
    "xonsh",
    "rc",
}
_TEXT_FOLLOWS = re.compile(r"[-+][A-Za-z]*c[A-Za-z]*\Z")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")
_VARIABLE = re.compile(r"\$\{?(\w+)")
_NUMBER = re.compile(r"[\d.]+[smhdKMGL]?\Z")
# Behind these a command begins; some take options and numbers before it.
_BEFORE = """
    { } if then elif else while until do ! time coproc and or not begin exec command builtin env nohup setsid nice ionice stdbuf
    timeout sudo doas chroot busybox toybox
"""
_BEFORE_COMMANDS = frozenset(_BEFORE.split())
# They take a text or a file for more commands, or put commands together of what they read.
_READ_MORE = frozenset(("eval", "source", ".", "trap", "alias", "xargs", "parallel"))
# With one of these options these have others executed, of whose words they make some; the commands stand among their own.
_HAND_ON = {
    "find": re.compile(r"-(?:exec|execdir|ok|okdir)\Z"),
    "fd": re.compile(r"-(?:x|X|-exec|-exec-batch)"),
}
# `env -S` makes words of one, and `-C` goes to another folder.
_SPLITS = re.compile(r"-[A-Za-z]*[SC]|--(?:split-string|chdir)")
_ENDS, _SPACES, _EXPANDED = frozenset(";&|()\n"), frozenset(" \t\r"), frozenset("*?[~{")
# These are what they are.
_THEMSELVES = frozenset(("[", "[[", "{"))


def texts(words: Sequence[str]) -> tuple[str, list[str]]:
    """A shell among these words that is given text to execute, and all that may be that text; without one both are empty."""
    for at, word in enumerate(words):
        if PurePosixPath(word).name in ALL:
            options = (place for place in range(at + 1, len(words)) if _TEXT_FOLLOWS.match(words[place]))
            if (option := next(options, None)) is not None:
                return PurePosixPath(word).name, [*words[at + 1 : option], *words[option + 1 :]]
    return "", []


@dataclass(frozen=True, slots=True)
class Command:
    """One of a text, or variables that it sets.

    Attributes:
        words: assignments and the program first; as they are written, without quotes.
        expanded: of each whether the shell puts something in.
    """

    words: tuple[str, ...]
    expanded: tuple[bool, ...]


def commands(text: str) -> list[Command]:
    """What a text has executed, as far as it says."""
    reading = _Reading()
    for char in f"{text}\n":
        reading.take(char)
    return [Command(*map(tuple, zip(*words, strict=True))) for words in reading.commands if words]


def hands_on(program: str, words: Sequence[str]) -> bool:
    """Whether a program with these words behind it has others executed, on what only it knows: `find -exec`, `xargs`."""
    name = PurePosixPath(program).name
    option = _HAND_ON.get(name)
    return name in ("xargs", "parallel") or (option is not None and any(map(option.match, words)))


def is_assignment(word: str) -> bool:
    """Whether a word where a command begins sets a variable."""
    return _ASSIGNMENT.match(word) is not None


def variables(text: str) -> set[str]:
    """The names of those that a text uses."""
    return set(_VARIABLE.findall(text))


def is_told(text: str) -> bool:
    """Whether the text itself says which programs it has executed."""
    reading = _Reading()
    for char in f"{text}\n":
        reading.take(char)
    return reading.told


class _Reading:
    """Of one text, character by character.

    Attributes:
        told: so far no command was put together by the shell.
        commands: their words, and of each whether the shell puts something in.
    """

    def __init__(self) -> None:
        self.told = True
        self.commands: list[list[tuple[str, bool]]] = []
        self._now: list[tuple[str, bool]] | None = None
        self._word: str | None = None
        self._expanded = False
        self._quote = self._before = ""
        # How many of the next words may be the command, and whether options may come before it.
        self._begins, self._options = 1, False
        # Of what is around a substitution, which has commands of its own, in quotes as well.
        self._around: list[tuple[str, int, bool, str, str | None, bool, list[tuple[str, bool]] | None]] = []

    def take(self, char: str) -> None:
        """Read one more."""
        before, self._before = self._before, char
        if before == "\\" and self._quote != "'":
            self._add("" if char == "\n" else char)
            self._before = ""
        elif self._quote == "'":
            self._add("" if char == "'" else char)
            self._quote = "" if char == "'" else "'"
        elif char == "\\":
            self._add("")
        elif char == '"' or (char == "'" and not self._quote):
            self._add("")
            self._quote = "" if self._quote else char
        elif (char == "(" and before == "$") or (char == "`" and not self._is_within("`")):
            self._add("", expanded=True)
            self._around.append((self._quote, self._begins, self._options, char, self._word, self._expanded, self._now))
            self._word, self._expanded = None, False
            self._quote, self._begins, self._options = "", 1, False
        elif (char == ")" and self._is_within("(")) or (char == "`" and self._is_within("`")):
            self._end()
            (self._quote, self._begins, self._options, _, self._word, self._expanded, self._now) = self._around.pop()
        elif char == "{" and before == "$":
            self._add(char)
        elif char == "#" and self._word is None and not self._quote:
            self.told = False  # shells do not agree on what a comment is
        elif char in "<>" and not self._quote:
            self._redirect(again=before == char)
        elif char in "&|" and before in ("<", ">") and not self._quote:
            pass  # a part of that
        elif char in _ENDS and not self._quote:
            self._end()
        elif char in _SPACES and not self._quote:
            self._end_word()
        else:
            self._add(char, expanded=char == "$" or (char in _EXPANDED and not self._quote))

    def _is_within(self, opened: str) -> bool:
        return bool(self._around) and self._around[-1][3] == opened and self._quote != "'"

    def _add(self, text: str, *, expanded: bool = False) -> None:
        self._word = (self._word or "") + text
        self._expanded |= expanded

    def _redirect(self, *, again: bool) -> None:
        """The next word is a file's name, wherever it stands. A text that follows may hold quotes that are none."""
        if self._word is not None and self._word.isdigit():
            self._word = None
        self._end_word()
        self.told = self.told and not again
        self._begins += bool(self._begins)

    def _end(self) -> None:
        self._end_word()
        self._begins, self._options = 1, False
        self._now = None

    def _end_word(self) -> None:
        word, expanded = self._word, self._expanded and self._word not in _THEMSELVES
        self._word, self._expanded = None, False
        if word is None:
            return
        if not self._begins:
            self._add_word(word, expanded)
            return
        if is_assignment(word):
            self.commands.append([(word, expanded)])
            return
        name = PurePosixPath(word).name or word
        if name in _BEFORE_COMMANDS and not expanded:
            self._begins, self._options = 1, True
        elif self._options and word.startswith("-") and not expanded:
            self._begins = 2  # the next one may be its value
            self.told = self.told and not _SPLITS.match(word)
        elif self._options and _NUMBER.match(word):
            self._begins = 1
        else:
            self._begins -= 1
            self.told = self.told and not expanded and name not in _READ_MORE
            self._now = [(word, expanded)]
            self.commands.append(self._now)

    def _add_word(self, word: str, expanded: bool) -> None:
        if self._now is None:
            return
        self._now.append((word, expanded))
        self.told = self.told and not hands_on(self._now[0][0], [word])
