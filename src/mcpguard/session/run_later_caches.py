"""Caches of programs in the home that the user's own tools run later: one line for each, however many files were written.

Honest runs of these tools fill them, so what is new is only listed; what was there before and was changed is named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from mcpguard.events import totals
from mcpguard.events.store import Store
from mcpguard.events.totals import Written
from mcpguard.session.run_later import CACHED, Later

# The folder that is named, who runs what is in it, and the beginning of a path in it that is installed as a whole.
_CACHES = tuple(
    (folder, why, re.compile(unit))
    for folder, why, unit in (
        (".cache/pre-commit", "git's pre-commit hooks run what is in it at your next commit", r"repo[^/]*(?:/[^/]+)?"),
        (".npm/_npx", "npx runs what is in it", r"[^/]+"),
        (".cache/node/corepack", "pnpm and yarn are run from it", r"v\d+/[^/]+(?:/[^/]+)?"),
        (".cache/uv", "uvx and uv run run what is in it", r"archive-v\d+/[^/]+|environments-v\d+/[^/]+(?:/[^/]+)?"),
        (
            ".cache/virtualenv",
            "virtualenv and pre-commit put what is in it into new environments",
            r"wheel/house/[^/]+\.whl|wheel/[^/]+/image/\d+/[^/]+/[^/]+|wheel/[^/]+/embed/.+\.json|py_info/.+\.json",
        ),
    )
)
_HONEST = "honest runs write there, too"
# What every honest run of an installed program may write: what Python compiles, and the lock of an environment.
_BY_RUNNING = re.compile(r"/__pycache__(?:/|$)|/\.lock$")


def of_caches(store: Store, session: str, written: Sequence[Written], home: str) -> list[Later]:
    """A line for each cache in which a program was written; `changed` names what belongs to something that was there before.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    found = []
    # An expression for each cache and each of very many files would take its time.
    every = tuple(f"{home}/{folder}/" for folder, _, _ in _CACHES)
    written = [one for one in written if one.path.startswith(every)]
    beginnings: dict[str, bool] | None = None
    for folder, why, unit in _CACHES:
        cache = f"{home}/{folder}"
        inside = [(one, met) for one in written if (met := _unit(one.path, cache, unit))]
        if not inside:
            continue
        beginnings = _beginnings(store, session) if beginnings is None else beginnings
        changed = [
            one.path.removeprefix(f"{cache}/")
            for one, met in inside
            if one.ways != ("mkdir",) and not _BY_RUNNING.search(one.path) and not _is_new(met, cache, beginnings)
        ]
        found.append(
            Later(
                cache,
                CACHED,
                f"{why}, unguarded; {_HONEST}",
                unasked=bool(changed),
                ways=_all(one.ways for one, _ in inside),
                programs=_all(one.programs for one, _ in inside),
                times=sum(one.times for one, _ in inside),
                changed=tuple(sorted(changed)),
            )
        )
    return found


def _unit(path: str, cache: str, unit: re.Pattern[str]) -> str:
    if not path.startswith(f"{cache}/"):
        return ""
    met = unit.match(path, len(cache) + 1)
    return path[: met.end()] if met else ""


def _is_new(unit: str, cache: str, beginnings: dict[str, bool]) -> bool:
    """What the session did first to the unit, or to a folder above it, was to make it."""
    parts = unit.removeprefix(f"{cache}/").split("/")
    above = [cache, *("/".join((cache, *parts[: at + 1])) for at in range(len(parts)))]
    return next((beginnings[path] for path in above if path in beginnings), False)


def _beginnings(store: Store, session: str) -> dict[str, bool]:
    """By path, whether the first thing that the session did to a name there was to make it, and not to take it away."""
    rows = totals.made_and_moved(store, session)
    last = {name: at for at, (_, path, target) in enumerate(rows) for name in (path, target) if name is not None}
    moved = {path: at for at, (op, path, _) in enumerate(rows) if op in ("rename", "exchange")}
    found: dict[str, bool] = {}
    for at, (op, path, target) in enumerate(rows):
        if target is not None:
            # A name that something was moved to may have been there before, unless that was made here and did move.
            made = op == "rename" and found.get(path, False) and _is_gone(path, at, last, moved)
            found.setdefault(target, made or op == "link")
        if op != "link":
            found.setdefault(path, op in ("mkdir", "create", "symlink", "mknod"))
    return found


def _is_gone(path: str, at: int, last: dict[str, int], moved: dict[str, int]) -> bool:
    """Whether a rename can have succeeded: tiers 1 and 2 record it before the kernel finds a folder with files in its way.

    Its old name is not used again then, by itself or with a folder above it, and is not there now.
    """
    above = (str(folder) for folder in Path(path).parents)
    return last[path] == at and all(moved.get(folder, -1) < at for folder in above) and not os.path.lexists(path)


def _all(words: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted({word for some in words for word in some}))
