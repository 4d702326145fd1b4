"""The command line of `run`: what it may hold, and what it says."""

from __future__ import annotations

import argparse

from mcpguard.errors import UsageError
from mcpguard.session.options import RunOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_WIDTH = 78

HELP = """Launch an agent or any command guarded by a profile.

AGENT is a profile that has a command (claude-code, codex, ...); everything
after it is passed to the agent.
With `-- CMD...` any command runs under the profile given by -p (default:
default).
The workspace is the current directory, or -w DIR; the agent cannot choose it."""

EPILOG = """examples:
  mcpguard run claude-code                    the agent, with its own profile
  mcpguard run claude-code -p "fix the test"  arguments for the agent itself
  mcpguard run -p dev-tools -- make test      any command
  mcpguard run --audit -- ./build.sh          record what would be denied
  mcpguard run --ask codex                    what no rule covers: ask in watch
  mcpguard run --net db.example:5432 codex    one more destination, this once

exit code: the command's own; 125 mcpguard failed before it; 126 not
executable; 127 not found; 128+n ended by signal n."""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Of a fixed width: to ask the terminal for its own, argparse imports half a dozen modules before each launch."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_WIDTH)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(
            f"run: {message}",
            why="the command line could not be understood",
            do="see `mcpguard run --help`",
            code="usage.run",
        )


def parser() -> argparse.ArgumentParser:
    """Options first, then AGENT or `--` and a command; nothing after that is ours."""
    made = _Parser(
        prog="mcpguard run",
        description=HELP,
        epilog=EPILOG,
        formatter_class=_Formatter,
        usage="mcpguard run [OPTIONS] AGENT [ARGS...] | mcpguard run [OPTIONS] -- CMD...",
        allow_abbrev=False,
    )
    made.add_argument(
        "-p", "--profile", metavar="PROFILE", help="profile name, or path of a profile outside the workspace"
    )
    made.add_argument("-w", "--workspace", metavar="DIR", help="the project; default: the current directory")
    made.add_argument("--audit", action="store_true", help="let through and record everything but explicit denials")
    made.add_argument(
        "--ask",
        action="store_true",
        help="make what no rule covers a question in `mcpguard watch`; it is refused until then, look-ups of names wait for it",
    )
    made.add_argument(
        "--best-effort", action="store_true", help="run although a rule cannot be enforced here; prints the gap"
    )
    made.add_argument("--tier", choices=("1", "2", "3"), help="insist on an enforcement tier (see `mcpguard doctor`)")
    made.add_argument("--read", metavar="PATH", action="append", default=[], help="also allow reading PATH; repeatable")
    made.add_argument(
        "--write", metavar="PATH", action="append", default=[], help="also allow writing PATH; repeatable"
    )
    made.add_argument(
        "--net", metavar="HOST:PORT", action="append", default=[], help="also allow a destination; repeatable"
    )
    made.add_argument("-q", "--quiet", action="store_true", help="no summary at the end")
    made.add_argument("command", nargs=argparse.REMAINDER, metavar="AGENT [ARGS...] | -- CMD...")
    return made


def parse(arguments: list[str]) -> RunOptions:
    """Raises UsageError."""
    # argparse would swallow the first `--`; whether it stood there decides what the first word means.
    head, separator, tail = _split(arguments)
    found = parser().parse_args(head)
    # A `--` after AGENT is the agent's own.
    words = [*found.command, "--", *tail] if found.command and separator else [*found.command, *tail]
    separator = separator and not found.command
    if not words:
        parser().error("nothing to run: name an AGENT, or write -- and a command")
    if found.ask and found.audit:
        parser().error(
            "--ask and --audit exclude each other: with --audit nothing is refused that could be asked about"
        )
    return RunOptions(
        ask=found.ask,
        profile=found.profile,
        workspace=found.workspace,
        audit=found.audit,
        best_effort=found.best_effort,
        tier=found.tier,
        read=tuple(found.read),
        write=tuple(found.write),
        net=tuple(found.net),
        quiet=found.quiet,
        command=tuple(words),
        after_separator=separator,
    )


def _split(arguments: list[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in arguments:
        return arguments, False, []
    place = arguments.index("--")
    return arguments[:place], True, arguments[place + 1 :]
