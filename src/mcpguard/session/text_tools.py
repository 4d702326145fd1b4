"""Programs that pass on or take apart what they are given, and answer nobody: what they read in a pipeline is data."""

from __future__ import annotations

from collections.abc import Sequence

# Without those that execute what they read (awk, sed, xargs) or may be written as a script's first line and do something, and
# those that answer with what somebody else says (curl, nc). A pager shows what it is given.
_NAMES = frozenset(
    (
        *(
            "base64",
            "cat",
            "cut",
            "fold",
            "grep",
            "gzip",
            "head",
            "hexdump",
            "jq",
            "less",
            "md5sum",
            "more",
            "nl",
            "od",
        ),
        *("rev", "rg", "sha1sum", "sha256sum", "sort", "strings", "tac", "tail", "tee", "tr", "uniq", "wc", "xxd"),
    )
)
# Many programs in one file, by their first word.
_MANY = frozenset({"busybox", "coreutils", "toybox"})
_SYSTEM = ("/usr/", "/bin/", "/nix/store/")


def is_text_tool(exe: str, argv: Sequence[str]) -> bool:
    """Whether a program of the system is one, by its path and, where one file holds many, by what it was called."""
    name = exe.rpartition("/")[2]
    if name in _MANY and argv:
        name = argv[0].rpartition("/")[2]
    return exe.startswith(_SYSTEM) and name in _NAMES
