"""Profile: what a person wrote, joined with its parents."""

from __future__ import annotations

import enum

from mcpguard.model.rule import FileException, FileRule, NetRule, Origin, SocketRule
from mcpguard.model.values import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mcpguard.model.mcp import McpRules

# What makes a user namespace usable; `system.user_namespaces` lets them be written.
NAMESPACE_MAPS = ("/proc/*/uid_map", "/proc/*/gid_map", "/proc/*/setgroups")


class SniMode(enum.StrEnum):
    """What the first bytes sent to an address of a name must be; a later one is stricter."""

    OFF = "off"
    CHECK = "check"
    REQUIRE = "require"


@dataclass(frozen=True, slots=True)
class SystemSwitches:
    """Kernel features that no profile gets unless it asks. True means permitted."""

    user_namespaces: bool = False
    io_uring: bool = False
    memory_programs: bool = False
    debuggers: bool = False


def _no_rules() -> McpRules:
    from mcpguard.model.mcp import McpRules  # a launch with a kept policy makes no profile

    return McpRules()


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile with everything it inherits merged in; merging is a union, so order never matters.

    Attributes:
        name: its name.
        source: the file it was read from (`builtin:NAME.yaml` for a shipped one).
        description: one line for lists.
        extends: names of direct parents, as written.
        command: what `mcpguard run NAME` executes; empty when the profile is not an agent.
        environment_remove: glob patterns of environment variables that the agent does not get.
        environment_keep: exceptions to `environment_remove`.
        environment_set: (name, value) of variables that the agent gets, by name; values as written.
        ancestors: every profile merged in, sorted by name.
        sni: the strictest that was written; None: nowhere.
        mcp: what it says of MCP servers and tools.
        exceptions: what built-in denials leave alone; the profile's own words, never its parents'.
    """

    name: str
    source: str
    description: str = ""
    extends: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    files: tuple[FileRule, ...] = ()
    network: tuple[NetRule, ...] = ()
    sockets: tuple[SocketRule, ...] = ()
    environment_remove: tuple[str, ...] = ()
    environment_keep: tuple[str, ...] = ()
    environment_set: tuple[tuple[str, str], ...] = ()
    system: SystemSwitches = field(default_factory=SystemSwitches)
    ancestors: tuple[str, ...] = ()
    origins: tuple[Origin, ...] = ()
    exceptions: tuple[FileException, ...] = ()
    sni: SniMode | None = None
    mcp: McpRules = field(default_factory=_no_rules)
