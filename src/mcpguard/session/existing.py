"""What the `existing` of rules names on this host now. Reads the file system as the user; finds a symlink, never follows it."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from mcpguard.model.rule import Found
from mcpguard.model.wildcards import Wildcards

MAX_LOOKED_AT = 400_000


def search(base: str, rest: str) -> Found:
    """Look for what a pattern names.

    Args:
        base: the absolute path that the pattern begins with; rest: what follows, beginning with `/`, or empty
            (`policy.patterns.split_literal`).
    """
    components = rest.split("/")[1:]
    search = _Search()
    if components:
        search.below(base, components)
    elif os.path.lexists(base):
        search.note(base, stat.S_ISDIR(os.lstat(base).st_mode))
    return Found(tuple(sorted(search.directories)), tuple(sorted(search.others)), tuple(sorted(search.unknown)))


class _Search:
    def __init__(self) -> None:
        self.directories: set[str] = set()
        self.others: set[str] = set()
        self.unknown: set[tuple[str, str]] = set()
        self._looked_at = 0

    def note(self, path: str, is_directory: bool) -> None:
        (self.directories if is_directory else self.others).add(path)

    def below(self, directory: str, components: Sequence[str]) -> None:
        """Note what the components name there. What was found is not searched: a repository holds none of its kind."""
        deep = components[0] == "**"
        wanted = Wildcards(components[1 if deep else 0 : 2 if deep else 1])
        further = components[2 if deep else 1 :]
        waiting = [directory]
        while waiting:
            here = waiting.pop()
            prefix = here.rstrip("/")
            for entry in self._listed(here, components):
                if entry.name in wanted:
                    path = f"{prefix}/{entry.name}"
                    if not further:
                        self.note(path, entry.is_dir(follow_symlinks=False))
                    elif entry.is_dir(follow_symlinks=False):
                        self.below(path, further)
                elif deep and entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{prefix}/{entry.name}")

    def _listed(self, directory: str, components: Sequence[str]) -> list[os.DirEntry[str]]:
        try:
            if self._looked_at > MAX_LOOKED_AT:
                raise OSError
            with os.scandir(directory) as entries:
                found = list(entries)
        except FileNotFoundError:
            return []
        except OSError:
            self.unknown.add((directory, "/" + "/".join(components)))
            return []
        self._looked_at += len(found)
        return found
