"""The loop of learning as an ordinary user has it: audited once, learned, and then enforced without a single refusal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher import Account
from wheels import put_wheel

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

WAIT_S = 110
PROFILE = """\
name: narrow
extends: [base]
files:
  execute: ["{workspace}"]
"""
TASK = """\
set -e
git init -q . && echo 'def test(): pass' > test_it.py && git add . && git -c user.name=x -c user.email=x@x commit -qm one
.venv/bin/python -m pytest -q test_it.py
.venv/bin/python -m pip --disable-pip-version-check install -q --no-index ./small-1.0-py3-none-any.whl
.venv/bin/python -c 'import small'
node -e "require('fs').appendFileSync(require('os').homedir() + '/.tool/log', 'x')"
cat ~/notes/n1 ~/notes/n2 ~/notes/n3
"""


class Learner:
    """The user, a project that the profile covers too little for, and a home with what the task wants of it."""

    def __init__(self, account: Account, workspace: Path) -> None:
        self.account, self.workspace = account, workspace
        profiles = account.home / ".config/mcpguard/profiles"
        for folder in (profiles, account.home / "notes", account.home / ".tool"):
            self.own(folder)
        for place in (profiles / "narrow.yaml", *(account.home / f"notes/n{number}" for number in (1, 2, 3))):
            place.write_text(PROFILE if place.suffix else "note\n")
            os.chown(place, account.entry.pw_uid, account.entry.pw_gid)
        self.do("python3", "-m", "venv", ".venv")
        self.do(".venv/bin/python", "-m", "pip", "install", "--quiet", "pytest")
        self.begin()

    def own(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for one in (folder, *folder.parents):
            if one.is_relative_to(self.account.home) and one != self.account.home:
                os.chown(one, self.account.entry.pw_uid, self.account.entry.pw_gid)

    def begin(self) -> None:
        """Put the project back to where the task finds it: the smallest package that pip takes, beside the environment."""
        for path in self.workspace.iterdir():
            if path.name != ".venv":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.do(".venv/bin/python", "-m", "pip", "uninstall", "--quiet", "--yes", "small")
        put_wheel(self.workspace)

    def do(self, *words: str, fails: bool = False) -> str:
        variables = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        process = self.account.start(
            words,
            cwd=self.workspace,
            env=self.account.env(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        out, err = process.communicate(timeout=WAIT_S)
        assert bool(process.returncode) is fails, (words, out[-2000:], err[-2000:])
        return str(out.decode())

    def mcpguard(self, *words: str, fails: bool = False) -> str:
        return self.do(*self.account.mcpguard, *words, fails=fails)

    def refused(self) -> list[object]:
        lines = self.mcpguard("log", "--verdict", "deny", "--format", "json").splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def learner(user: Account) -> Iterator[Learner]:
    workspace = user.home / "learned"
    workspace.mkdir()
    os.chown(workspace, user.entry.pw_uid, user.entry.pw_gid)
    yield Learner(user, workspace)
    shutil.rmtree(workspace)


def test_what_was_learned_of_a_real_task_refuses_nothing_of_it(learner: Learner) -> None:
    task = ("--", "bash", "-c", TASK)
    learner.mcpguard("run", "-p", "narrow", *task, fails=True)
    assert learner.refused()
    learner.begin()
    learner.mcpguard("run", "--audit", "-p", "narrow", *task)
    learner.mcpguard("profile", "learn", "--install", "--yes", "--name", "learned")
    learner.begin()
    learner.mcpguard("run", "-p", "learned", *task)
    assert [(one["op"], one["path"], one.get("comm"), one.get("detail")) for one in learner.refused()] == []
