"""`mcpguard mcp`, called the way a shell calls it: list, show, approve, revoke."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mcp_files import copied, npx_installed, write

from mcpguard.catalogue import approved
from mcpguard.cli import main
from mcpguard.gate.pins import Pins, of_approval

TOKEN = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2  # put together, so that no scanner takes this file for a leak
Mcp = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mcp(
    tmp_path: Path, mcpguard_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Mcp:
    """Calls `mcpguard mcp WORDS` in the project of a world of its own; gives the exit code, the output and the errors."""
    (tmp_path / "project").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    for name in ("XDG_CONFIG_HOME", "CODEX_HOME", "CLAUDE_CONFIG_DIR", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mcpguard", "mcp", *words])
        code = main.main()
        done = capsys.readouterr()
        return code, done.out, done.err

    return call


def declare(folder: Path, **servers: object) -> Path:
    """A project's `.mcp.json`."""
    return write(folder / "project/.mcp.json", json.dumps({"mcpServers": servers}))


def change_of(mcp: Mcp, name: str = "mine") -> str:
    """What a person says to approve what changed, as `show` tells it."""
    (row,) = json.loads(mcp("show", name, "--format", "json")[1])["declared"]
    assert f"changed to   {row['changed_to']}" in mcp("show", name)[1]
    return str(row["changed_to"])


def test_list_shows_every_server_with_its_state(tmp_path: Path, mcp: Mcp) -> None:
    copied(tmp_path)
    code, out, _ = mcp("list")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["claude-project", "claude-code", "project", "not", "approved", "npx"] in [row[:6] for row in rows]
    assert ["opencode-remote", "opencode", "user", "not", "approved,", "disabled"] in [row[:6] for row in rows]
    assert ["developer", "goose", "user", "built-in", "built-in"] in rows
    code, out, _ = mcp("list", "--format", "json")
    listed = {one["name"]: one for one in json.loads(out)}
    assert set(listed) >= {"claude-user", "codex-remote", "zed-old"}
    assert listed["claude-user"]["command"] == ["npx", "-y", "@modelcontextprotocol/server-memory@2025.9.25"]
    assert listed["codex-remote"]["identity"] == {"origin": "https://mcp.figma.example:443"}
    assert listed["opencode-remote"]["enabled"] is False
    assert "state" not in listed["developer"]


def test_approve_show_change_revoke(tmp_path: Path, mcp: Mcp) -> None:
    script = write(tmp_path / "project/server.sh", "one")
    declare(tmp_path, mine={"command": "sh", "args": ["server.sh"], "env": {"TOKEN": "${TOKEN}"}})
    code, out, _ = mcp("approve", "--yes", "mine")
    assert code == 0
    assert "script       " + str(script) in out and "variable     TOKEN=${TOKEN}" in out
    assert "finding      MCP05 program-in-project: " in out
    assert approved.load().entries[0].environment == ("TOKEN",)
    assert "approved already" in mcp("approve", "mine")[1]
    assert " approved " in mcp("list")[1]
    script.write_text("two")
    assert " changed " in mcp("list")[1]
    shown = mcp("show", "mine")[1]
    assert "changed      script sha256: " in shown
    assert mcp("approve", "mine", "--changed", change_of(mcp))[0] == 0
    shown = json.loads(mcp("show", "mine", "--format", "json")[1])
    assert (
        shown["declared"][0]["state"] == "approved" and shown["approved"][0]["digest"] == shown["declared"][0]["digest"]
    )
    code, out, _ = mcp("revoke", "mine")
    assert (code, out) == (0, "revoked  mine  sh server.sh\n")
    assert mcp("revoke", "mine")[0] == 1
    assert "not approved" in mcp("list")[1]


def test_a_server_that_says_something_else_since_is_approved_again_by_its_name(tmp_path: Path, mcp: Mcp) -> None:
    write(tmp_path / "project/server.sh", "one")
    declare(tmp_path, mine={"command": "sh", "args": ["server.sh"], "env": {"A": "b"}})
    assert mcp("approve", "--yes", "mine")[0] == 0

    def pinned() -> Pins:
        (entry,) = approved.load().entries
        return of_approval(entry.name, entry.digest, entry.approved)

    before = pinned()
    before |= {"tool:look": "a", "server:instructions": "b"}
    before.keep()
    assert "approved already" in mcp("approve", "--yes", "mine")[1] and pinned() == before
    assert "something else" not in "".join(map(str, mcp("list")))
    before.others |= {"server:instructions": "other", "tool:lo\x1bok": "new"}
    before.keep()
    assert "mine says something else than when it was approved" in mcp("list")[2]
    (listed,) = json.loads(mcp("list", "--format", "json")[1])
    assert listed["other_definitions"] == ["its instructions", "tool lo\\x1bok"] and listed["state"] == "approved"
    assert "changed      its instructions: not what it said when it was approved" in mcp("show", "mine")[1]
    code, out, err = mcp("approve", "--all", "--yes")
    assert code == 0 and "approved already" in out and "approve it by its name" in err and pinned() == before
    assert mcp("approve", "mine")[0] == 2, "nobody is there to be asked"
    assert pinned() == before
    code, out, _ = mcp("approve", "mine", "--changed", change_of(mcp)[:32])
    assert code == 0 and "changed      its instructions" in out
    assert "what it says by now counts as approved: its instructions; tool lo\\x1bok" in out
    assert pinned() == {"tool:look": "a", "server:instructions": "other", "tool:lo\x1bok": "new"}
    assert pinned().others == {}
    assert "approved already" in mcp("approve", "mine")[1]
    (entry,) = approved.load().entries
    assert entry.environment == ("A",)


def test_yes_alone_renews_no_approval_of_what_changed(tmp_path: Path, mcp: Mcp) -> None:
    """A script that approves at each start would accept whatever a server has become."""
    script = write(tmp_path / "project/server.sh", "one")
    declare(tmp_path, mine={"command": "sh", "args": ["server.sh"]})
    provisioning = ("approve", "--yes", "mine")
    assert mcp(*provisioning)[0] == mcp(*provisioning)[0] == 0
    first = approved.load()

    def refused(*words: str, why: str) -> None:
        code, _, err = mcp(*words)
        assert code == 1 and approved.load() == first, words
        assert [line.split()[0] for line in err.splitlines()[-4:]] == ["mcpguard:", "why", "do", "code"]
        assert why in err and "code  mcp.not-renewed" in err
        assert f"mcpguard mcp approve mine --changed {change_of(mcp)[:32]}\n" in err

    script.write_text("two")
    for words in (provisioning, ("approve", "--all", "--yes")):
        refused(*words, why="script sha256: ")
    second = change_of(mcp)
    script.write_text("three")
    refused(*provisioning, "--changed", second, why="script sha256: ")
    refused("approve", "mine", "--changed", second, why="script sha256: ")
    script.write_text("one")
    (entry,) = first.entries
    pins = of_approval(entry.name, entry.digest, entry.approved)
    pins |= {"tool:look": "a", "tool:see": "b"}
    pins.others["tool:look"] = "evil"
    pins.keep()
    refused(*provisioning, why="tool look: not what it said when it was approved")
    assert mcp("approve", "--all", "--yes")[0] == 0 and approved.load() == first
    assert of_approval(entry.name, entry.digest, entry.approved) == pins
    # A change that comes after the look at it is not the one that was seen.
    evil = change_of(mcp)
    pins.others["tool:look"] = "worse"
    pins.keep()
    refused("approve", "--yes", "mine", "--changed", evil, why="tool look: ")
    assert mcp("approve", "--yes", "mine", "--changed", change_of(mcp))[0] == 0
    (entry,) = approved.load().entries
    assert of_approval(entry.name, entry.digest, entry.approved) == {"tool:look": "worse", "tool:see": "b"}
    # The same words at the next start: nothing changed since.
    assert mcp("approve", "--yes", "mine", "--changed", evil)[0] == 0


def test_of_many_changes_some_are_told(tmp_path: Path, mcp: Mcp) -> None:
    write(tmp_path / "project/server.sh", "one")
    declare(tmp_path, mine={"command": "sh", "args": ["server.sh"]})
    assert mcp("approve", "--yes", "mine")[0] == 0
    (entry,) = approved.load().entries
    pins = of_approval(entry.name, entry.digest, entry.approved)
    pins["tool:look"] = "a"
    pins.others |= {f"tool:{at:02}": "new" for at in range(12)}
    pins.keep()
    assert "tool 09: not what it said when it was approved; and 2 more\n" in mcp("approve", "--yes", "mine")[2]


def test_of_a_local_server_is_said_what_makes_a_profile_that_keeps_it(tmp_path: Path, mcp: Mcp) -> None:
    declare(tmp_path, **{"my own": {"command": "cat"}, "far": {"type": "http", "url": "https://unknown.example/mcp/"}})
    assert "mcpguard profile learn --server 'my own' makes a profile" in mcp("show", "my own")[1]
    assert "kept to" not in mcp("show", "far")[1], "nothing of it runs here"


def test_of_a_server_is_said_which_rules_leave_it_what_reads(tmp_path: Path, mcp: Mcp) -> None:
    declare(tmp_path, **{"my gh": {"type": "http", "url": "https://api.githubcopilot.com/mcp/"}})
    shown = mcp("show", "my gh")[1]
    assert 'mcp: {deny: ["my_gh/@destructive"]} refuses what deletes' in shown
    assert "extends: [claude-code, mcp-read-only] refuses what changes anything" in shown
    declare(tmp_path, other={"type": "http", "url": "https://unknown.example/mcp/"})
    shown = mcp("show", "other")[1]
    assert "@destructive" not in shown and "not known by class" in shown
    assert "extends: [claude-code, mcp-read-only] refuses all of them but" in shown and "{read: [other/TOOL]}" in shown
    write(tmp_path / "home/.cursor/mcp.json", '{"mcpServers": {"cursors": {"command": "cat"}}}')
    assert "extends: [AGENT, mcp-read-only]" in mcp("show", "cursors")[1], "no profile is built in for that client"
    npx_installed(
        tmp_path / "home", "@modelcontextprotocol/server-memory", "@modelcontextprotocol/server-memory", "1.0.0"
    )
    write(tmp_path / "bin/npx", "#!/bin/sh\n").chmod(0o755)
    for package, says in (("memory", True), ("everything", False)):
        declare(tmp_path, s={"command": "npx", "args": ["-y", f"@modelcontextprotocol/server-{package}"]})
        assert ("mcp-read-only" in mcp("show", "s")[1]) is says, "one that changes nothing needs no rule"


def test_a_package_that_is_not_installed_is_told_with_what_installs_it(tmp_path: Path, mcp: Mcp) -> None:
    program = write(tmp_path / "bin/npx", "#!/bin/sh\n")
    program.chmod(0o755)
    declare(tmp_path, pack={"command": "npx", "args": ["-y", "@a/b"]})
    code, _, err = mcp("approve", "--yes", "pack")
    assert code == 1 and f"First: npx -y --cache {tmp_path}/home/.npm -p @a/b true" in err
    npx_installed(tmp_path / "home", "@a/b", "@a/b", "1.0.0")
    code, out, _ = mcp("approve", "--yes", "pack")
    assert code == 0 and "installed    1.0.0" in out
    assert "to have them anew first: rm -rf" in out, (
        "an earlier session may have put it there, and npx takes what it finds"
    )
    npx_installed(tmp_path / "home", "@a/b", "@a/b", "1.0.1")
    assert "changed      installed: 1.0.0 -> 1.0.1" in mcp("show", "pack")[1]


def test_what_only_a_runner_knows_is_told_with_what_to_declare_instead(tmp_path: Path, mcp: Mcp) -> None:
    for name in ("bunx", "deno", "uv"):
        write(tmp_path / "bin" / name, "#!/bin/sh\n").chmod(0o755)
    script = write(tmp_path / "x.py", '# /// script\n# dependencies = ["mcp"]\n# ///\n')
    declare(
        tmp_path,
        bun={"command": "bunx", "args": ["a@1.0.0", "--flag"]},
        deno={"command": "deno", "args": ["run", "-A", "jsr:@a/b"]},
        uv={"command": "uv", "args": ["run", str(script)]},
        none={"command": "absent-server"},
    )
    for name, says in (
        ("bun", "Instead: declare it as: npx -y a@1.0.0 --flag"),
        ("deno", "Instead: outside of the session: deno compile -A -o FILE jsr:@a/b; then"),
        (
            "uv",
            f"uv venv DIR && uv pip install --python DIR -r {script}), then declare DIR/bin/python with this script",
        ),
        ("none", "cannot be approved: no program absent-server was found"),
    ):
        code, _, err = mcp("approve", "--yes", name)
        assert code == 1 and says in err, (name, err)


def test_all_of_them(tmp_path: Path, mcp: Mcp) -> None:
    declare(tmp_path, a={"command": "sh"}, b={"url": "https://b.example/mcp"}, c={"command": "nowhere"}, d={})
    code, _, err = mcp("approve", "--all", "--yes")
    assert code == 1
    assert "c cannot be approved" in err
    assert [entry.name for entry in approved.load().entries] == ["a", "b"]
    assert mcp("revoke", "--all")[0] == 0
    assert approved.load().entries == ()


def test_a_name_that_means_several_servers_is_not_approved_unseen(tmp_path: Path, mcp: Mcp) -> None:
    declare(tmp_path, twice={"command": "sh"})
    write(tmp_path / "home/.cursor/mcp.json", '{"mcpServers": {"twice": {"command": "cat"}}}')
    code, _, err = mcp("approve", "--yes", "twice")
    assert code == 2 and "code  usage.mcp-several" in err
    assert mcp("approve", "--yes", "twice", "--client", "cursor")[0] == 0
    assert mcp("list")[1].count(" approved ") == 1
    assert " changed " in mcp("list")[1]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("approve",), "usage.mcp"),
        (("approve", "a", "--all"), "usage.mcp"),
        (("revoke",), "usage.mcp"),
        (("approve", "nothing"), "usage.mcp-server"),
        (("show", "min"), "usage.mcp-server"),
        (("approve", "mine"), "usage.mcp"),
        (("approve", "mine", "--changed", "12ab"), "usage.mcp"),
        (("approve", "--all", "--changed", "1234567890abcdef"), "usage.mcp"),
    ],
)
def test_misuse_is_told_in_four_lines(tmp_path: Path, mcp: Mcp, words: tuple[str, ...], error: str) -> None:
    declare(tmp_path, mine={"command": "sh"})
    code, _, err = mcp(*words)
    assert code == 2
    assert [line.split()[0] for line in err.splitlines()] == ["mcpguard:", "why", "do", "code"]
    assert f"code  {error}" in err
    assert words[-1] != "min" or 'did you mean "mine"?' in err


def test_secrets_are_shown_nowhere(tmp_path: Path, mcp: Mcp) -> None:
    declare(
        tmp_path,
        local={"command": "sh", "args": ["x.sh", "--api-key", "hunter22", TOKEN], "env": {"KEY": TOKEN}},
        far={
            "url": f"https://me:hunter22@b.example/mcp?token={TOKEN}",
            "headers": {"Authorization": f"Bearer {TOKEN}"},
        },
    )
    write(tmp_path / "project/x.sh", "1")
    said = [mcp(*words) for words in (("list",), ("list", "--format", "json"), ("show", "local"), ("show", "far"))]
    said += [mcp("approve", "--yes", "--all"), mcp("show", "local", "--format", "json"), mcp("revoke", "local")]
    for _, out, err in said:
        assert TOKEN not in out + err and "hunter22" not in out + err
    assert TOKEN not in approved.file().read_text() and "hunter22" not in approved.file().read_text()


def test_names_cannot_steer_the_terminal(tmp_path: Path, mcp: Mcp) -> None:
    name = "x\x1b[2J\n\u202ey\u200b\U000e0041\ud800"
    declare(tmp_path, **{name: {"command": "sh", "args": [name], "cwd": name, "description": name}})
    write(tmp_path / "home/.codex/config.toml", '"\\u001b[2J" = [')
    for words in (
        ("list",),
        ("list", "--format", "json"),
        ("show", name),
        ("approve", "--yes", name),
        ("revoke", name),
    ):
        for text in mcp(*words)[1:]:
            assert all(char.isprintable() or char == "\n" for char in text)


def test_a_file_that_is_not_read_is_told(tmp_path: Path, mcp: Mcp) -> None:
    write(tmp_path / "project/.mcp.json", "{")
    code, _, err = mcp("list")
    assert code == 0
    assert f"not read: {tmp_path / 'project/.mcp.json'}: " in err


def test_a_catalogue_that_is_not_understood_is_an_error(tmp_path: Path, mcp: Mcp) -> None:
    declare(tmp_path, mine={"command": "sh"})
    write(approved.file(), "{")
    for words in (("list",), ("approve", "--yes", "mine"), ("revoke", "mine"), ("show", "mine")):
        code, _, err = mcp(*words)
        assert code == 1 and "code  catalogue.unusable" in err


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("\n", 1), ("n\n", 1), ("\x04", 1)])
def test_a_terminal_is_asked(tmp_path: Path, mcp: Mcp, answer: str, code: int) -> None:
    declare(tmp_path, mine={"command": "sh"})
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "mcpguard", "mcp", "approve", "mine"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        assert b"[y/N]" in os.read(ours, 1024)
        os.write(ours, answer.encode())
        assert process.wait(60) == code
    os.close(ours)
    assert bool(approved.load().entries) == (code == 0)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mcpguard mcp ap", ["approve"]),
        ("mcpguard mcp approve mi", ["mine"]),
        ("mcpguard mcp show mi", ["mine"]),
        ("mcpguard mcp revoke mi", []),
        ("mcpguard mcp approve --client cur", ["cursor"]),
    ],
)
def test_a_shell_completes_names(tmp_path: Path, mcp: Mcp, line: str, expected: list[str]) -> None:
    declare(tmp_path, mine={"command": "sh"})
    done = subprocess.run(
        [sys.executable, "-m", "mcpguard"],
        env={
            **os.environ,
            "_MCPGUARD_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split()) - 1),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == expected
