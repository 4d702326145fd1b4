"""`mcpguard run`: words in, a session out. Imports nothing heavy: this is the path that everybody waits on."""

from __future__ import annotations

import gc
import os
import sys

from mcpguard.errors import McpguardError
from mcpguard.session.start import Start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from mcpguard.session.options import RunOptions

FAILED = 125
_HELP = {"-h", "--help"}


def _leave(code: int) -> NoReturn:
    """All is written and closed: taking the interpreter apart would only take as long as starting it."""
    import contextlib

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _parse(arguments: list[str]) -> RunOptions:
    from mcpguard.cli import plain_words

    if options := plain_words.parse(arguments):
        return options
    from mcpguard.cli.run_words import parse

    return parse(arguments)


def main(arguments: list[str]) -> int:
    """Run, and end with the exit code of the contract; returns it where nothing was run."""
    gc.disable()  # what a launch makes stays; `session.run` turns it on again when the agent runs
    try:
        if not _HELP.isdisjoint(arguments):
            _parse(arguments)  # who only asks for help needs no broker
        start = Start()
        try:
            options = _parse(arguments)
            start.load(options)
            if options.read:
                from mcpguard.session.wide import read_notes

                sys.stderr.writelines(f"mcpguard: {note}\n" for note in read_notes(options.read))
            from mcpguard.session.run import run

            code = run(options, start)
        finally:
            start.close()
        _leave(code)
    except McpguardError as error:
        sys.stderr.write("\n".join(error.lines()) + "\n")
        return FAILED
    except KeyboardInterrupt:
        return 130
