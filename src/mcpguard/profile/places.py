"""Where mcpguard's own files lie, as text: a launch asks for it, and `pathlib` would take longer than all that it is asked for.

`profile.store` says the same in paths, for everybody else.
"""

from __future__ import annotations

import os

import mcpguard

SUFFIX = ".yaml"


def config() -> str:
    """`$MCPGUARD_HOME/config`, else `$XDG_CONFIG_HOME/mcpguard` (`~/.config` by default)."""
    return _own("config") or f"{_base('XDG_CONFIG_HOME', '~/.config')}/mcpguard"


def state() -> str:
    """`$MCPGUARD_HOME/state`, else `$XDG_STATE_HOME/mcpguard` (`~/.local/state` by default)."""
    return _own("state") or f"{_base('XDG_STATE_HOME', '~/.local/state')}/mcpguard"


def catalogue() -> str:
    """The file with the servers that the user approved: `catalogue.approved` reads and writes it."""
    return f"{config()}/mcp-servers.json"


def profiles() -> str:
    """Where a person's own profiles are; it may not exist yet."""
    return f"{config()}/profiles"


def control() -> str:
    """Where sessions that run take more rules from their user; no guarded process sees it."""
    return f"{state()}/control"


def gate() -> str:
    """Where sessions that run have the socket of their gate; guarded processes reach it, and cannot change it."""
    return f"{state()}/gate"


def builtin_profiles() -> str:
    """Where the shipped profiles are: in the package, or beside `src` in a checkout."""
    package = os.path.dirname(mcpguard.__file__)
    installed = f"{package}/data/profiles"
    return installed if os.path.isdir(installed) else f"{os.path.dirname(os.path.dirname(package))}/profiles"


def typed(text: str) -> str:
    """A path as typed: `~/` is the home where the shell left it in place; `~NAME` stays as it is."""
    return _expanded(text) if text == "~" or text.startswith("~/") else text


def absolute(path: str) -> str:
    """From the root on, and written once; `..` stays, as behind a symlink it is not what the text says.

    Raises:
        FileNotFoundError: it is relative and the current directory was removed.
    """
    whole = path if path.startswith("/") else f"{os.getcwd()}/{path}"
    return "/" + "/".join(part for part in whole.split("/") if part not in ("", "."))


def _own(name: str) -> str:
    home = os.environ.get("MCPGUARD_HOME")
    return absolute(f"{home}/{name}") if home else ""


def _base(variable: str, default: str) -> str:
    """A base directory; as its specification wants it, a relative one counts for none."""
    given = os.environ.get(variable, "")
    return absolute(given if given.startswith("/") else _expanded(default))


def _expanded(path: str) -> str:
    found = os.path.expanduser(path)
    if found.startswith("~"):  # it would be a folder of that name in the workspace
        raise RuntimeError("the home directory is not known")
    return found
