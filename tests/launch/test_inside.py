"""What a guarded program of root's, or of an ordinary user with sudo, can do to the mcpguard that started it: nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from launcher import Account

from mcpguard.kernel import places

pytestmark = pytest.mark.kernel

# Tries each of its ancestors, nearest first, and the folders that it is given; says what was refused.
PROBE = """
import json, os, sys

def refused(act, *words):
    try:
        act(*words)
    except OSError as no:
        return type(no).__name__ in ("PermissionError", "OSError")
    return False

def plant(folder):
    os.makedirs(f"{folder}/planted")
    os.rmdir(f"{folder}/planted")

def replace(folder):
    os.rename(folder, f"{folder}-moved")
    os.rename(f"{folder}-moved", folder)

pid, found = os.getppid(), []
while pid:
    with open(f"/proc/{pid}/cmdline") as line:
        words = line.read().replace("\\0", " ")
    acts = {
        "signal": refused(os.kill, pid, 0),
        "environment": refused(lambda: open(f"/proc/{pid}/environ").read()),
        "descriptors": refused(os.readlink, f"/proc/{pid}/fd/0"),
        "memory": refused(lambda: open(f"/proc/{pid}/mem", "rb").close()),
    }
    found.append({"own": os.stat(f"/proc/{pid}").st_uid == os.getuid(), "words": words, "refused": acts})
    with open(f"/proc/{pid}/stat") as stat:
        pid = int(stat.read().rpartition(")")[2].split()[1])
folders = {f"{act.__name__} {folder}": refused(act, folder) for folder in sys.argv[1:] for act in (plant, replace)}
print(json.dumps({"ancestors": found, "folders": folders}))
"""


@pytest.fixture
def folders(account: Account, workspace: Path) -> list[str]:
    """Where the profiles and the records of the account are; a first run has made them."""
    assert account.guarded("true", cwd=workspace).returncode == 0
    home = account.environment.get("MCPGUARD_HOME")
    found = [f"{home}/config", f"{home}/state"] if home else []
    found = found or [f"{account.home}/.config/mcpguard", f"{account.home}/.local/state/mcpguard"]
    assert all(map(os.path.isdir, found))
    return found


def test_the_mcpguard_that_started_it_is_out_of_reach(account: Account, workspace: Path, folders: list[str]) -> None:
    probe = ["/usr/bin/python3", "-c", PROBE, *folders]
    control = json.loads(account.do(["sh", "-c", '"$@"; exit', "sh", *probe], cwd=workspace).stdout)
    assert control["ancestors"][0]["own"]
    assert not any(control["ancestors"][0]["refused"].values()), control
    assert not any(control["folders"].values()), control
    found = json.loads(account.guarded(*probe, cwd=workspace).stdout)
    guards = [each for each in found["ancestors"] if "mcpguard" in each["words"]]
    assert [each for each in guards if each["own"]]
    assert all(all(each["refused"].values()) for each in guards), guards
    assert all(found["folders"].values()), found["folders"]
    told = account.do([*account.mcpguard, "log", "--verdict", "deny", "--format", "json"], cwd=workspace).stdout
    assert {"signal", "open", "mkdir", "rename"} <= {event["op"] for event in lines(told)}


def test_what_root_remembers_of_this_host_is_out_of_reach_though_a_rule_opens_its_folder(
    account: Account, workspace: Path
) -> None:
    """Which tiers were refused, and which engine the objects are; a shell outside, as root, writes beside them."""
    memory = Path(places.RUN)
    assert account.guarded("true", cwd=workspace).returncode == 0
    control, forged = memory.parent / "mcpguard-control", memory / "forged"
    attempt = (
        'for file in "$@"; do echo forged > "$file" && echo "$file"; done; mv "$0" "$0-moved" && echo moved; ls -a "$0"'
    )
    words = [str(memory), str(forged), *map(str, remembered(memory)), str(control)]
    forged.write_text("the control: outside, root can")
    forged.unlink()
    before = remembered(memory)
    try:
        run = [*account.mcpguard, "run", "--write", "/run", "--", "sh", "-c", attempt, *words]
        told = account.do(run, cwd=workspace).stdout.decode().split()
        assert (str(control) in told) == (account.entry.pw_uid == 0), "/run is open to who may write there"
        assert not {"moved", *words[1:-1]} & set(told)
        assert "tiers.json" not in told
        assert not forged.exists() and remembered(memory) == before
        log = account.do([*account.mcpguard, "log", "--verdict", "deny", "--format", "json"], cwd=workspace).stdout
        assert {event.get("path") for event in lines(log)} >= set(words[1:-1])
    finally:
        control.unlink(missing_ok=True)


def remembered(memory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(memory.glob("*.json"))}


def lines(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]
