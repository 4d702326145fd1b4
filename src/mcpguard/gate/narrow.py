"""Narrowing a process to what its server may reach, before it becomes the server. Done inside the tree, by the shim.

Landlock rulesets and system-call filters stack: a process can put on more, and nothing takes one off. So whoever forges this
narrows itself, or does not and is no server that was admitted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mcpguard.kernel import landlock, mounts, privileges

_STANDARD = 3


def narrow(grants: Sequence[Sequence[tuple[str, int]]], program: bytes, line: int) -> None:
    """Keep this process, and all that it starts, to what is granted.

    Args:
        grants: lists of `[path, Landlock rights]`, each a ruleset; a path that is not there, or became a symlink, is left out.
        program: a system-call filter; empty: none.
        line: the one descriptor that stays open besides the standard ones: others could lead out.

    Raises:
        OSError: the kernel refused it.
    """
    privileges.close_from(_STANDARD, {line})
    for granted in grants:
        ruleset = landlock.Ruleset(landlock.abi())
        for path, rights in granted:
            try:
                place = mounts.open_exact(path)
            except OSError:
                continue
            is_folder = os.path.isdir(f"/proc/self/fd/{place}")
            ruleset.allow(place, rights if is_folder else rights & landlock.FILE_RIGHTS)
            os.close(place)
        ruleset.restrict_self()
    if program:
        privileges.install_seccomp(program)
