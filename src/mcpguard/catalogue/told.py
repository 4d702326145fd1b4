"""Which programs and files the text of a shell has executed, in which folders; or that only the shell knows."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from mcpguard.catalogue import shells
from mcpguard.model.values import dataclass

# More than anybody writes; each may name files.
_MOST_WORDS = 1_000
_DEEPEST = 4
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_PATH = re.compile(r"PATH=(.*)\Z", re.DOTALL)
# These are parts of the shell, and execute nothing.
_SHELLS_OWN = """
    cd pushd popd [ [[ test echo printf true false : export readonly declare local set unset shopt ulimit umask exit return
    wait read shift break continue pwd kill type hash getopts for case select function in esac fi done
"""
_OWN = frozenset(_SHELLS_OWN.split())
_EXPORTS = frozenset(("export", "readonly", "declare", "local"))


class UntoldError(Exception):
    """Only the shell knows; the text says what."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command.

    Attributes:
        words: the program first, with the variables that are known.
        folders: where it may be executed, the likeliest last.
        environment: with which.
    """

    words: tuple[str, ...]
    folders: tuple[Path, ...]
    environment: Mapping[str, str]


def steps(texts: Sequence[str], environment: Mapping[str, str], cwd: Path) -> list[Step]:
    """What these texts have executed, one after the other.

    Raises:
        UntoldError: where they go, or what they execute, cannot be told.
    """
    found: list[Step] = []
    for text in texts:
        _steps(text, dict(environment), [cwd], found, 0)
    return found


def _steps(text: str, environment: dict[str, str], folders: list[Path], found: list[Step], depth: int) -> None:
    if depth >= _DEEPEST or not shells.is_told(text):
        raise UntoldError("what it puts together")
    for command in shells.commands(text):
        pairs = zip(command.words, command.expanded, strict=True)
        words = tuple(_filled(word, environment) if expanded else word for word, expanded in pairs)
        exported = words[1:] if words[0] in _EXPORTS else takewhile(shells.is_assignment, words)
        for word in exported:
            if path := _PATH.match(word):
                if "$" in path[1]:
                    raise UntoldError("where it looks for programs (PATH)")
                environment["PATH"] = path[1]
        words = tuple(words[len(list(takewhile(shells.is_assignment, words))) :])
        if not words or words[0] in _OWN:
            if words and words[0] in ("cd", "pushd"):
                folders.append(_folder(words, command.expanded, folders[-1], environment))
            continue
        if sum(len(one.words) for one in found) > _MOST_WORDS:
            raise UntoldError("so much")
        inner = shells.texts(words)[1]
        for one in inner:
            _steps(one, dict(environment), list(folders), found, depth + 1)
        found.append(Step(words, tuple(folders), dict(environment)))


def _folder(words: Sequence[str], expanded: Sequence[bool], now: Path, environment: Mapping[str, str]) -> Path:
    target = words[1] if len(words) == 2 else environment.get("HOME", "$") if len(words) == 1 else "$"
    if target.startswith("-") or (expanded[-1] and re.search(r"[$*?\[{]", target)):
        raise UntoldError("to which folder it goes")
    return Path(os.path.normpath(now / target))


def _filled(word: str, environment: Mapping[str, str]) -> str:
    home = environment.get("HOME")
    if home and (word == "~" or word.startswith("~/")):
        word = home + word[1:]
    return _VARIABLE.sub(lambda found: environment.get(found[1] or found[2], found[0]), word)
