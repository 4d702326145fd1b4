"""Servers that a container engine runs: its daemon works outside of the session, where no rule of it holds."""

from __future__ import annotations

import os
from collections.abc import Mapping

from mcpguard.catalogue.identity import Identity
from mcpguard.errors import HostError

# Whose command only asks a daemon. What podman runs is its own child, and has to do with the session's own rules.
_ASKING = ("docker", "nerdctl")
_SOCKETS = ("/run/docker.sock", "/run/user/{uid}/docker.sock", "{home}/.docker/run/docker.sock")
_MORE_SOCKETS = ("{home}/.docker/desktop/docker.sock", "/run/containerd/containerd.sock")
_CHOOSING = ("DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINERD_ADDRESS")


def sockets(home: str) -> tuple[str, ...]:
    """Where engines listen, whether or not there is one."""
    return tuple(path.format(uid=os.getuid(), home=home) for path in (*_SOCKETS, *_MORE_SOCKETS))


def refuse(name: str, found: Identity, environment: Mapping[str, str], reached: Mapping[str, bool]) -> None:
    """Say why a container does not start, which its engine could not.

    Args:
        environment: of the server.
        reached: of each of `sockets`, whether the session may connect to it.

    Raises:
        HostError: the engine's sockets are there, and closed to the session.
    """
    runner = found.package.runner if found.package is not None else os.path.basename(found.command)
    if runner not in _ASKING or any(map(environment.get, _CHOOSING)):
        return
    there = [path for path in reached if os.path.exists(path)]
    if there and not any(reached[path] for path in there):
        raise HostError(
            f"the MCP server {name} was not started",
            why=f"{runner} has a daemon start it, outside of the session, and {there[0]} is closed to this session",
            do="run the server without a container (npx, uvx), or start the container yourself and declare its address",
            code="mcp.container",
        )
