"""Where profiles live: built-in ones inside the package, a person's own below the configuration directory.

Knows names, paths and bytes; reads no YAML. Writes only into the user's own folders, and always by replacing a whole
file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mcpguard.errors import HostError
from mcpguard.model.values import dataclass
from mcpguard.profile import places

SUFFIX = places.SUFFIX


def config_directory() -> Path:
    """As `places.config`."""
    return Path(places.config())


def catalogue_file() -> Path:
    """As `places.catalogue`."""
    return Path(places.catalogue())


def state_directory() -> Path:
    """As `places.state`."""
    return Path(places.state())


def control_directory() -> Path:
    """As `places.control`."""
    return Path(places.control())


def gate_directory() -> Path:
    """As `places.gate`."""
    return Path(places.gate())


def typed_path(text: str) -> Path:
    """As `places.typed`."""
    return Path(places.typed(text))


def user_directory() -> Path:
    """As `places.profiles`."""
    return Path(places.profiles())


def builtin_directory() -> Path:
    """As `places.builtin_profiles`."""
    return Path(places.builtin_profiles())


@dataclass(frozen=True, slots=True)
class Entry:
    """A profile that can be loaded by name.

    Attributes:
        source: what errors and rules call it: its path, or `builtin:NAME.yaml`.
    """

    name: str
    path: Path
    builtin: bool

    @property
    def source(self) -> str:
        return f"builtin:{self.path.name}" if self.builtin else str(self.path)


def builtin(name: str) -> Entry | None:
    """The shipped profile of this name."""
    return _entry(builtin_directory(), name, shipped=True)


def own(name: str) -> Entry | None:
    """The user's profile of this name."""
    return _entry(user_directory(), name, shipped=False)


def _entry(directory: Path, name: str, *, shipped: bool) -> Entry | None:
    path = directory / f"{name}{SUFFIX}"
    return Entry(name, path, shipped) if path.is_file() else None


def find(name: str) -> Entry | None:
    """The profile that a name means: the user's own first."""
    return own(name) or builtin(name)


def entries() -> list[Entry]:
    """Every profile, built-in ones first, each group by name. A name may be in both."""
    return [*_listed(builtin_directory(), shipped=True), *_listed(user_directory(), shipped=False)]


def names() -> list[str]:
    """Every name that can be loaded."""
    return sorted({entry.name for entry in entries()})


def _listed(directory: Path, *, shipped: bool) -> Iterator[Entry]:
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        yield Entry(path.stem, path, shipped)


def replace(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader sees the old content or the new one. Makes the directory, for its owner alone.

    Raises:
        HostError: it could not be written; nothing changed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _replace(path, content)
    except OSError as failed:
        raise HostError(
            f"{path} cannot be written",
            why=failed.strerror or str(failed),
            do="check the folder's permissions and the space on its disk; inside a guarded session nobody may write it",
            code="profile.not-written",
        ) from None


def _replace(path: Path, content: bytes) -> None:
    import tempfile  # a launch writes no profile, and waits for what it imports

    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
