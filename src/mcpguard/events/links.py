"""Symlinks that the tree made, remembered: a link can be gone by the time a refusal through it is explained.

From records of the kernel only; bounded; opens nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

MAX_LINKS = 4_096
# A link that is flipped to and fro shows its last few targets.
MAX_TARGETS = 4


class Links:
    """What each link made by the tree has pointed to, newest last."""

    def __init__(self) -> None:
        self._targets: OrderedDict[str, list[str]] = OrderedDict()

    def made(self, link: str, target: str) -> None:
        """Note a new link; `link` is absolute, `target` as it was written into it."""
        targets = self._targets.pop(link, [])
        if target in targets:
            targets.remove(target)
        self._targets[link] = [*targets, target][-MAX_TARGETS:]
        if len(self._targets) > MAX_LINKS:
            self._targets.popitem(last=False)

    def moved(self, old: str, new: str) -> None:
        """A rename may have moved a link."""
        for target in self._targets.get(old, ()):
            self.made(new, target)

    def readers(self) -> list[Callable[[str], str | None]]:
        """Ways to read links: each gives one of the targets that a link has had, the newest first."""
        return [lambda link, age=age: self._older(link, age) for age in range(MAX_TARGETS)]  # type: ignore[misc]

    def _older(self, link: str, age: int) -> str | None:
        targets = self._targets.get(link, ())
        return targets[-1 - min(age, len(targets) - 1)] if targets else None
