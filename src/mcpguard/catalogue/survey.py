"""Every declared server with what it is and what the catalogue says of it: what `mcpguard mcp` shows and asks about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mcpguard.catalogue import approved, starting
from mcpguard.catalogue.approved import Catalogue, Entry, State
from mcpguard.catalogue.clients import Inventory, belongs, inventory
from mcpguard.catalogue.identity import Identity, brief, shown
from mcpguard.catalogue.server import REMOTE, STDIO, Server
from mcpguard.errors import UsageError
from mcpguard.model.values import dataclass
from mcpguard.profile.nodes import near


@dataclass(frozen=True, slots=True)
class Row:
    """One declared server.

    Attributes:
        identity: None where there is nothing to approve: it is part of its client, or unclear.
        here: it is declared for the project that was asked about, or for every project.
    """

    server: Server
    identity: Identity | None
    state: State
    here: bool

    @property
    def starts(self) -> str:
        """The command or URL as written, without secrets."""
        if self.server.kind == STDIO:
            return " ".join(masked_words(self.server))
        return brief(self.server.url) if self.server.kind == REMOTE else self.server.kind

    @property
    def word(self) -> str:
        """Its state in a word or two."""
        return self.state.word if self.identity is not None else self.server.kind


@dataclass(frozen=True, slots=True)
class Survey:
    """All of them, with the files that they were read from."""

    inventory: Inventory
    catalogue: Catalogue
    rows: tuple[Row, ...]

    def undeclared(self) -> list[Entry]:
        """Approvals of names that nothing here declares."""
        names = {row.server.name for row in self.rows}
        return [entry for entry in self.catalogue.entries if entry.name not in names]


def survey(project: Path, environment: Mapping[str, str], root: Path = Path("/")) -> Survey:
    """Read what clients declare, and compare it with the catalogue.

    Raises:
        HostError: the catalogue cannot be used.
    """
    catalogue = approved.load()
    found = inventory(project, environment, root)
    rows = tuple(_row(server, environment, project, catalogue) for server in found.servers)
    return Survey(found, catalogue, rows)


def _row(server: Server, environment: Mapping[str, str], project: Path, catalogue: Catalogue) -> Row:
    known = starting.identify(server, environment, project)
    state = catalogue.state(server.name, known) if known else State(approved.NOT_APPROVED)
    return Row(server, known, state, belongs(server, project))


def masked_words(server: Server) -> list[str]:
    """Command and arguments as written, without secrets."""
    return shown(server.words)


def chosen(found: Survey, name: str, client: str = "") -> list[Row]:
    """The declarations that a name means; those of other projects only where there is no other.

    Raises:
        UsageError: nothing of that name is declared.
    """
    rows = [row for row in found.rows if row.server.name == name and client in ("", row.server.client)]
    if rows:
        return [row for row in rows if row.here] or rows
    known = sorted({row.server.name for row in found.rows})
    raise UsageError(
        f'no MCP server "{name}" is declared here' + (f" for {client}" if client else ""),
        why=near(name, known) or f"looked in {found.inventory.project} and in the settings of every client",
        do="mcpguard mcp list",
        code="usage.mcp-server",
    )
