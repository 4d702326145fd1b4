"""Narrowing a process to what its server may reach, before it becomes the server. Done inside the tree, by the shim.

Landlock rulesets and system-call filters stack: a process can put on more, and nothing takes one off. So whoever forges this
narrows itself, or does not and is no server that was admitted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mcpguard.kernel import landlock, mounts, privileges


def narrow(grants: Sequence[Sequence[str | int]] | None, program: bytes) -> None:
    """Keep this process, and all that it starts, to what is granted.

    Args:
        grants: `[path, Landlock rights]`; a path that is not there, or has become a symlink, is left out. None: no file rules.
        program: a system-call filter; empty: none.

    Raises:
        OSError: the kernel refused it.
    """
    if grants is not None:
        ruleset = landlock.Ruleset(landlock.abi())
        for path, rights in grants:
            try:
                place = mounts.open_exact(str(path))
            except OSError:
                continue
            is_folder = os.path.isdir(f"/proc/self/fd/{place}")
            ruleset.allow(place, int(rights) if is_folder else int(rights) & landlock.FILE_RIGHTS)
            os.close(place)
        ruleset.restrict_self()
    if program:
        privileges.install_seccomp(program)
