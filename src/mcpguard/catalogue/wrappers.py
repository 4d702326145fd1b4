"""Programs that execute what their words name (`env A=b program`), and where in their words it stands. Pure.

Known are switches that stand by themselves, and a few options with a value whose form leaves no doubt. Any other option may
take the next word for its value, and then another word is the program than it seems: nothing is known of such a command.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mcpguard.model.values import dataclass

# Without these two the command is looked for elsewhere.
_NAME = r"(?!(?:PATH|HOME)\b)[A-Za-z_]\w*"
_NUMBER, _MODE = r"[+-]?\d{1,3}", r"(?:L|\d+[KM]?)"
_DURATION, _SIGNAL = r"\d+(?:\.\d+)?[smhd]?", r"(?:SIG)?[A-Z]+\d*|\d{1,2}"
_CLASS = r"(?:[0-3]|none|realtime|best-effort|idle)"


@dataclass(frozen=True, slots=True)
class _Words:
    """What a wrapper takes before its command.

    Attributes:
        alone: options that are one word, with their value where they have one.
        pairs: options whose value is the next word, and what that may be.
        first: what the one word behind the options may be, without which there is no command; None: there is no such word.
    """

    alone: re.Pattern[str]
    pairs: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = ()
    first: re.Pattern[str] | None = None


def _words(alone: str, *pairs: tuple[tuple[str, ...], str], first: str | None = None) -> _Words:
    compiled = tuple((names, re.compile(value, re.ASCII)) for names, value in pairs)
    return _Words(re.compile(alone, re.ASCII), compiled, None if first is None else re.compile(first, re.ASCII))


_KNOWN = {
    # -C moves to another folder, where words name other files; -S makes words of one.
    "env": _words(rf"-[iv]+|--ignore-environment|--debug|-u{_NAME}|--unset={_NAME}", (("-u", "--unset"), _NAME)),
    "nohup": _words("(?!)"),
    "setsid": _words("-[cfw]+|--ctty|--fork|--wait"),
    "nice": _words(rf"--?\d+|-n{_NUMBER}|--adjustment={_NUMBER}", (("-n", "--adjustment"), _NUMBER)),
    "stdbuf": _words(
        rf"-[ioe]{_MODE}|--(?:input|output|error)={_MODE}",
        (("-i", "-o", "-e", "--input", "--output", "--error"), _MODE),
    ),
    "time": _words("-[pqv]+|--portability|--quiet|--verbose"),
    "timeout": _words(
        rf"-v|--(?:verbose|foreground|preserve-status)|-k{_DURATION}|--kill-after={_DURATION}|-s(?:{_SIGNAL})|--signal=(?:{_SIGNAL})",
        (("-k", "--kill-after"), _DURATION),
        (("-s", "--signal"), _SIGNAL),
        first=_DURATION,
    ),
    "ionice": _words(
        rf"-t|--ignore|-c{_CLASS}|--class={_CLASS}|-n[0-7]|--classdata=[0-7]",
        (("-c", "--class"), _CLASS),
        (("-n", "--classdata"), "[0-7]"),
    ),
    "taskset": _words("-[ac]+|--all-tasks|--cpu-list", first=r"(?:0x)?[\da-fA-F,:-]+"),
    "chrt": _words("-[abfiorRv]+|--(?:batch|fifo|idle|other|rr|reset-on-fork|verbose)", first=r"\d{1,2}"),
}
NAMES = frozenset(_KNOWN)
_EMPTIES = re.compile("-v*i[iv]*|--ignore-environment")


def command_at(wrapper: str, args: Sequence[str]) -> int | None:
    """Where the command stands that a wrapper of this name executes; None where it is not known, or there is none."""
    known, options, at = _KNOWN[wrapper], True, 0
    first = known.first
    while at < len(args):
        arg = args[at]
        if options and (arg == "--" or (wrapper == "env" and arg == "-")):
            options = False
        elif options and arg.startswith("-"):
            value = next((value for names, value in known.pairs if arg in names), None)
            if value is not None and at + 1 < len(args) and value.fullmatch(args[at + 1]):
                at += 1
            elif value is not None or not known.alone.fullmatch(arg):
                return None
        elif wrapper == "env" and "=" in arg:
            options = False  # it takes none behind a variable
        elif first is not None:
            if not first.fullmatch(arg):
                return None
            first, options = None, False
        else:
            return at
        at += 1
    return None


def change(environment: dict[str, str], wrapper: str, args: list[str]) -> None:
    """Do to an environment what a wrapper does whose command is known.

    PATH and HOME stay: what they lead to is compared again when it is executed.

    Args:
        args: a list of what stands before the command.
    """
    if wrapper != "env":
        return
    # In the words of a known command options end at the first of these, and it has no other words than these.
    end = next((at for at, arg in enumerate(args) if arg in ("-", "--") or _is_variable(arg)), len(args))
    if args[end : end + 1] == ["-"] or any(map(_EMPTIES.fullmatch, args[:end])):
        for name in environment.keys() - {"PATH", "HOME"}:
            del environment[name]
    for at, arg in enumerate(args[:end]):
        if arg in ("-u", "--unset"):
            environment.pop(args[at + 1], None)
        elif arg.startswith(("-u", "--unset=")):
            environment.pop(arg.removeprefix("--unset=").removeprefix("-u"), None)
    for name, equals, value in (arg.partition("=") for arg in args[end:]):
        if equals:
            environment[name] = value


def _is_variable(arg: str) -> bool:
    return "=" in arg and not arg.startswith("-")


def of_first_line(words: Sequence[str]) -> Sequence[str]:
    """The command of `#!/usr/bin/env -S A=b program`, from the words behind `env`; empty where it is not known."""
    split = [*words[:1][0][2:].split(), *words[1:]] if words and words[0].startswith("-S") else list(words)
    at = command_at("env", split)
    return [] if at is None else split[at:]
