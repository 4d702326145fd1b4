"""The command `mcpguard`: words to the module that knows them, errors to four lines and an exit code.

`run` is dispatched before anything else is imported: everybody waits for it, and it needs neither typer nor rich.
"""

from __future__ import annotations

import os
import sys

from mcpguard.cli import exit_codes
from mcpguard.errors import McpguardError

# What reading or writing the files of mcpguard itself ends with.
_CLOSED = ("store.unusable", "store.not-ours", "profile.not-written", "catalogue.unusable")


def main() -> int:
    """The console entry; returns the exit code."""
    arguments = sys.argv[1:]
    try:
        if arguments[:1] == ["run"]:
            from mcpguard.cli import run

            return run.main(arguments[1:])
        if arguments[:2] == ["mcp", "shim"]:
            from mcpguard.gate import shim

            shim.main(arguments[2:])
        return _others()
    except McpguardError as problem:
        from mcpguard.cli import render

        render.error(_in_a_session(problem))
        return exit_codes.CANNOT_SAY if arguments[:1] == ["why"] else problem.exit_code
    except BrokenPipeError:
        # Whoever read our output has enough; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.DONE
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED


def _in_a_session(problem: McpguardError) -> McpguardError:
    """Where mcpguard's own files are closed because this is a guarded process, the disk is not to blame."""
    if problem.code not in _CLOSED:
        return problem
    from mcpguard.session.start import refuse_nesting

    try:
        refuse_nesting()
    except McpguardError as nested:
        return nested
    return problem


def _others() -> int:
    from mcpguard.cli import commands

    words = sys.argv[1:]
    if len(words) == 2 and words[0] in (commands.SHOW_COMPLETION, commands.INSTALL_COMPLETION):
        commands.completion(*words)
        return exit_codes.DONE
    try:
        commands.command()(prog_name=commands.NAME)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else exit_codes.DONE
    return exit_codes.DONE
