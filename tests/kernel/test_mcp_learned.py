"""What a server was seen to need becomes the profile that it is kept to: it goes on working, and does nothing else."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from harness import Json, need_root, sandbox
from mcp_box import PROFILE, Box, text_of, tool

pytestmark = pytest.mark.kernel

# More than the server is seen to use.
AGENTS = PROFILE.replace(
    'write: ["{workspace}", "{tmp}"]', 'write: ["{workspace}", "{tmp}", ~/notes]\n  read: [~/other]'
)
NETWORK = 'network:\n  allow: ["localhost:1024-65535"]\n'


@pytest.fixture
def box() -> Iterator[Box]:
    need_root()
    with sandbox() as inside:
        made = Box(inside)
        made.approve("s", made.command)
        for name in ("notes/n1", "notes/n2", "notes/n3", "notes/n4", "other/plan"):
            place = inside.world.home / name
            place.parent.mkdir(exist_ok=True)
            place.write_text(f"{place.name}\n")
        inside.write_profile("gated", AGENTS + NETWORK)
        yield made


def answers(box: Box, *lines: str) -> list[str]:
    return [text_of(one) for one in box.talk("s", *lines).json_lines()[:-1]]


def refused(box: Box, rule: str) -> list[Json]:
    """But the canary, which a kept server tries before it starts."""
    loud = [one for one in box.inside.denials() if not one.get("detail", "").startswith("quiet")]
    return [one for one in loud if one.get("rule", {}).get("text") == rule]


def test_a_server_is_kept_to_what_it_was_seen_to_do(box: Box) -> None:
    home, project = box.inside.world.home, box.inside.world.project
    with socket.create_server(("127.0.0.1", 0)) as used, socket.create_server(("127.0.0.1", 0)) as unused:
        port, other = used.getsockname()[1], unused.getsockname()[1]
        work = [
            *(tool("read", number, path=str(home / f"notes/n{number}")) for number in range(1, 5)),
            tool("write", 5, path=str(home / "notes/made")),
            tool("write", 6, path=str(project / "made")),
            tool("connect", 7, host="127.0.0.1", port=port),
            tool("run", 8, command="/bin/true"),
        ]
        beyond = [
            tool("read", 1, path=str(home / "other/plan")),
            tool("connect", 2, host="127.0.0.1", port=other),
            tool("write", 3, path=str(project / "else")),
        ]
        honest = answers(box, *work)
        assert [honest[0], honest[4], honest[7]] == ["n1\n", "7", "0"] and honest[6].startswith("<socket")
        learned = box.inside.mcpguard("profile", "learn", "--server", "s", "--install", "--yes")
        assert learned.code == 0 and "mcp: {confine: {s: mcp-s}}" in learned.err, learned
        assert f"localhost:{port}" in learned.out and str(other) not in learned.out
        # The control: its agent may all that, and so it may without the rule.
        free = answers(box, *beyond)
        assert (free[0], free[2]) == ("plan\n", "7") and free[1].startswith("<socket")
        (project / "else").unlink()
        box.inside.write_profile("gated", AGENTS + "  confine: {s: mcp-s}\n" + NETWORK)
        kept = answers(box, *work)
        assert kept[:6] == honest[:6] and kept[6].startswith("<socket") and kept[7] == "0"
        assert not refused(box, "mcp confine s mcp-s")
        assert answers(box, *beyond) == ["refused: 13", "refused: 1", "refused: 13"]
    paths = {event.get("path") for event in refused(box, "mcp confine s mcp-s")}
    assert {str(home / "other/plan"), str(project / "else")} <= paths
    assert any(event["kind"] == "net" and event["port"] == other for event in box.inside.denials())


def test_what_it_was_refused_for_its_own_profile_is_learned_as_well(box: Box) -> None:
    """And what another server of the session, and the shim, did is not."""
    home = box.inside.world.home
    box.inside.write_profile("mcp-s", f"name: mcp-s\nextends: [mcp-server]\nfiles:\n  read: [{box.server}]\n")
    box.inside.write_profile("gated", AGENTS + "  confine: {s: mcp-s}\n" + NETWORK)
    asked = tool("read", 1, path=str(home / "other/plan"))
    assert answers(box, asked) == ["refused: 13"]
    (event,) = refused(box, "mcp confine s mcp-s")
    assert event["path"] == str(home / "other/plan")
    learned = box.inside.mcpguard("profile", "learn", "--server", "s", "--format", "json")
    made = json.loads(learned.out)
    assert [(one["key"], one["value"]) for one in made["proposed"]] == [("files.read", "~/other/plan")], made
    assert box.inside.mcpguard("profile", "learn", "--server", "s", "--install", "--yes").code == 0
    assert answers(box, asked) == ["plan\n"]


def test_keys_are_not_learned_and_an_unknown_server_is_named(box: Box) -> None:
    key = box.inside.world.home / ".ssh/id_ed25519"
    box.inside.write_profile("gated", AGENTS + "  confine: {s: as-agent}\n" + NETWORK)
    assert answers(box, tool("read", 1, path=str(key))) == ["refused: 13"]
    learned = box.inside.mcpguard("profile", "learn", "--server", "s")
    assert learned.code == 0 and ".ssh" not in learned.out, learned
    nobody = box.inside.mcpguard("profile", "learn", "--server", "nobody")
    assert nobody.code == 2 and "learn.no-server" in nobody.err and "those that were: s" in nobody.err, nobody


def test_where_its_names_come_and_go_it_gets_the_folder_and_its_program_as_a_whole_to_read(box: Box) -> None:
    home, project = box.inside.world.home, box.inside.world.project
    modules = home / "notes/node_modules/server"
    modules.mkdir(parents=True)
    (modules / "index.js").write_text("x")
    replaces = f"echo 1 > {home}/notes/new && mv {home}/notes/new {home}/notes/kept && rm {project}/app.py"
    work = [
        tool("run", 1, command=replaces),
        tool("read", 2, path=str(modules / "index.js")),
        tool("write", 3, path=str(modules / "index.js")),
        tool("run", 4, command="t=$(mktemp) && rm $t"),
    ]
    assert answers(box, *work) == ["0", "x", "7", "0"]
    learned = box.inside.mcpguard("profile", "learn", "--server", "s", "--format", "json")
    proposed = {(one["key"], one["value"]) for one in json.loads(learned.out)["proposed"]}
    assert {("files.write", value) for value in ("~/notes", "{workspace}", "{tmp}")} <= proposed, proposed
    assert not [value for key, value in proposed if key == "files.write" and "node_modules" in value]
    (left,) = json.loads(learned.out)["left_out"]
    assert (left["object"], left["access"]) == (str(modules / "index.js"), "write")
    assert "installed program" in left["rule"]
