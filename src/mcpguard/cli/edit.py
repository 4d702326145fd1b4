"""`mcpguard profile edit`: an editor on a copy, which replaces the profile only when it can be loaded and compiled."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mcpguard.cli import exit_codes, render
from mcpguard.errors import HostError, McpguardError, UsageError
from mcpguard.model.profile import Profile
from mcpguard.profile import store
from mcpguard.profile.effective import difference
from mcpguard.profile.load import inspect, inspect_text, is_path, locate
from mcpguard.session.policy import trial

EDITORS = ("sensible-editor", "nano", "vim", "vi")


def template(name: str, parents: Sequence[str]) -> str:
    """A first profile, with examples that do nothing until they are uncommented."""
    return f"""# {name}: say here who this is for and why.
name: {name}
extends: [{", ".join(parents)}]

# Remove the # in front of what you need. All keys: `mcpguard profile show base`, docs/profiles.md
#
# files:
#   read:     [~/notes]
#   write:    [~/.cache/my-tool]
#   readonly: ["{{workspace}}/migrations"]
#   deny:
#     - path: "{{workspace}}/customers"
#       because: personal data
# network:
#   allow:    ["example.com:443", "localhost:5432"]
"""


def edit(name: str) -> int:
    """Edit until the profile is sound or the person gives up; returns the exit code.

    Raises:
        McpguardError: there is no such profile or editor, or the result cannot be written.
    """
    target, original, text = _begin(name)
    copy = store.state_directory() / "drafts" / target.path.name
    store.replace(copy, text.encode("utf-8", "surrogateescape"))
    while True:
        _open_editor(copy)
        edited = copy.read_bytes()
        if edited == original or (original is None and edited == text.encode()):
            copy.unlink()
            render.note("nothing was changed")
            return exit_codes.DONE
        profile, problems = _examine(edited, target)
        if profile is not None and not problems:
            return _install(target, original, edited, profile, copy)
        for problem in problems:
            render.error(problem)
        if not _again():
            render.note(f"nothing was installed; the broken copy is {copy}")
            return exit_codes.NEGATIVE


def _begin(name: str) -> tuple[store.Entry, bytes | None, str]:
    """(what will be written, its content now, the text to begin with)."""
    if is_path(name) and not store.typed_path(name).exists():
        raise UsageError(
            f"there is no file {name}",
            why="`edit` changes a profile that exists",
            do="mcpguard profile new NAME",
            code="usage.unknown-profile",
        )
    found = locate(name)
    if found.builtin:
        target = store.Entry(found.name, store.user_directory() / found.path.name, builtin=False)
        return target, None, template(found.name, [found.name])
    content = found.path.read_bytes()
    return found, content, content.decode("utf-8", "surrogateescape")


def _open_editor(path: Path) -> None:
    command = _editor()
    try:
        done = subprocess.run([*command, str(path)], check=False)
    except OSError as failed:
        raise _no_editor(f"{command[0]}: {failed.strerror}") from None
    if done.returncode:
        raise HostError(
            f"the editor ended with status {done.returncode}",
            why="a failed editor may have written half of a file",
            do=f"edit again; the copy is {path}",
            code="profile.editor-failed",
        )


def _editor() -> list[str]:
    for variable in ("VISUAL", "EDITOR"):
        words = shlex.split(os.environ.get(variable, ""))
        if words:
            return words
    for name in EDITORS:
        if found := shutil.which(name):
            return [found]
    raise _no_editor("neither $VISUAL nor $EDITOR is set, and none of " + ", ".join(EDITORS) + " is installed")


def _no_editor(why: str) -> HostError:
    return HostError("no editor can be started", why=why, do="set EDITOR to one", code="profile.no-editor")


def _examine(content: bytes, target: store.Entry) -> tuple[Profile | None, list[McpguardError]]:
    profile, errors = inspect_text(content.decode("utf-8", "surrogateescape"), target)
    return profile, [*errors, *(trial(profile) if profile else [])]


def _again() -> bool:
    """Ask on a terminal; without one the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    sys.stderr.write("edit it again? [Y/n] ")
    sys.stderr.flush()
    answer = sys.stdin.readline()
    return bool(answer) and answer.strip().lower() in ("", "y", "yes")


def _install(target: store.Entry, original: bytes | None, edited: bytes, profile: Profile, copy: Path) -> int:
    now = target.path.read_bytes() if target.path.exists() else None
    if now != original:
        raise HostError(
            f"{target.path} was changed by somebody else meanwhile",
            why="installing your copy would undo that change",
            do=f"compare it with your copy: {copy}",
            code="profile.changed-meanwhile",
        )
    before, _ = inspect(str(target.path)) if now is not None else inspect(target.name)
    store.replace(target.path, edited)
    copy.unlink()
    if before is None:
        render.note("the profile was broken before, so there is nothing to compare with")
    else:
        removed, added = difference(before, profile)
        render.changes(removed, added)
        if not removed and not added:
            render.note("no rule changes")
    render.note(f"installed {target.path}; running sessions keep their policy")
    return exit_codes.DONE
