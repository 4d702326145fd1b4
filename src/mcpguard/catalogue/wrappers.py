"""Programs that execute what their words name (`env A=b program`), and where in their words it stands. Pure.

Known are switches that stand by themselves. Any other option may take the next word for its value, and then another word is the
program than it seems: nothing is known of such a command.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NONE = re.compile(r"(?!)")
_SWITCHES = {
    "env": re.compile(r"-[iv]+|--ignore-environment|--debug"),
    "nohup": _NONE,
    "setsid": re.compile(r"-[cfw]+|--ctty|--fork|--wait"),
    "nice": re.compile(r"--?\d+"),
    "stdbuf": re.compile(r"-[ioe](?:L|\d+)|--(?:input|output|error)=(?:L|\d+)"),
    "time": re.compile(r"-[pqv]+|--portability|--quiet|--verbose"),
}
NAMES = frozenset(_SWITCHES)


def command_at(wrapper: str, args: Sequence[str]) -> int | None:
    """Where the command stands that a wrapper of this name executes; None where it is not known, or there is none."""
    options = True
    for at, arg in enumerate(args):
        if options and (arg == "--" or (wrapper == "env" and arg == "-")):
            options = False
        elif options and arg.startswith("-"):
            if not _SWITCHES[wrapper].fullmatch(arg):
                return None
        elif wrapper == "env" and "=" in arg:
            options = False  # it takes none behind a variable
        else:
            return at
    return None


def of_first_line(words: Sequence[str]) -> Sequence[str]:
    """The command of `#!/usr/bin/env -S A=b program`, from the words behind `env`; empty where it is not known."""
    split = [*words[:1][0][2:].split(), *words[1:]] if words and words[0].startswith("-S") else list(words)
    at = command_at("env", split)
    return [] if at is None else split[at:]
