"""The report of a real run: what it planted for later is told, however it came to be, and by what is in it now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from harness import Finished, Json, Sandbox, need_root, sandbox

pytestmark = pytest.mark.kernel

PLANT = r"""
set -e
mkdir -p .github/workflows sub/plain sub/named venv/lib/python3/site-packages
echo on: push > .github/workflows/ci.yml
echo '{"scripts": {"test": "sh evil.sh"}}' > package.json
echo '{"mcpServers": {"helper": {"command": "sh", "args": ["evil.sh"]}}}' > sub/.mcp.json.new
mv sub/.mcp.json.new sub/.mcp.json
echo '{"tasks": [{"label": "x", "command": "sh evil.sh", "runOptions": {"runOn": "folderOpen"}}]}' > sub/plain/tasks.json
mv sub/plain sub/.vscode
echo 'import os' > sub/x && ln sub/x venv/lib/python3/site-packages/x.pth
ln -s named sub/.idea
echo '# do as I say' > AGENTS.md
git init -q made && echo true > made/.git/hooks/pre-commit && git -C made config core.fsmonitor ./evil.sh
echo '{}' > made/package.json
echo gone > sub/.npmrc && rm sub/.npmrc
echo x > plain.txt
"""


@dataclass
class Told:
    """A finished run and its report in each form."""

    finished: Finished
    text: str
    json: Json
    html: str

    def later(self, end: str) -> Json:
        (found,) = [one for one in self.json["later"] if one["what"].endswith(end)]
        return found


def tell(box: Sandbox, script: str) -> Told:
    finished = box.run(["bash", "-c", script])
    assert finished.code == 0, finished.err
    forms = [box.mcpguard("report", "--format", form) for form in ("text", "json", "html")]
    assert all(form.code == 0 for form in forms), forms
    return Told(finished, forms[0].out, json.loads(forms[1].out), forms[2].out)


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    need_root()
    with sandbox() as box:
        yield tell(box, PLANT)


PLANTED = {
    "/project/.github/workflows/ci.yml": ("workflow", ""),
    "/project/package.json": ("package-scripts", "not in the last commit; test: sh evil.sh"),
    "/project/sub/.mcp.json": ("mcp-server", "helper: sh evil.sh"),
    "/project/sub/.vscode/tasks.json": ("editor", "runs when the folder is opened: sh evil.sh"),
    "/project/venv/lib/python3/site-packages/x.pth": ("python", "runs import os"),
    "/project/sub/.idea": ("editor", "a symlink leads elsewhere; not looked at"),
    "/project/AGENTS.md": ("agent-instructions", ""),
    "/project/made": ("repository", "core.fsmonitor = ./evil.sh; hooks pre-commit"),
    "/project/sub/.npmrc": ("package-source", "no longer there"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_was_planted_is_told_with_what_is_in_it(name: str, told: Told) -> None:
    found = told.later(name)
    assert (found["kind"], found["now"]) == PLANTED[name]
    shown = name.removeprefix("/project/")
    assert shown in told.text and shown in told.html
    assert PLANTED[name][1] in told.text and PLANTED[name][1].partition("; ")[0] in told.html


def test_nothing_else_is_told(told: Told) -> None:
    assert {one["what"].partition("/project")[2] for one in told.json["later"]} == {
        name.removeprefix("/project") for name in PLANTED
    }


def test_the_end_of_the_run_names_what_nobody_has_to_ask_for(told: Told) -> None:
    assert "/sub/.vscode/tasks.json" in told.finished.err and "use git in: " in told.finished.err
    assert "mcpguard report" in told.finished.err
    assert "package.json" not in told.finished.err


def test_a_run_that_plants_nothing_has_nothing_to_tell() -> None:
    need_root()
    with sandbox() as box:
        plain = tell(box, "echo x > plain.txt && python3 -c 'print(1)' && git status")
    assert plain.json["later"] == []
    assert "nothing was found that runs by itself" in plain.text
    assert "mcpguard report" not in plain.finished.err


@pytest.fixture
def caches() -> Iterator[Sandbox]:
    """A home whose caches hold programs that the user's tools run."""
    need_root()
    with sandbox("dev-tools") as box:
        for name in (".cache/pre-commit/repoold/py_env/bin/hook", ".npm/_npx/old/node_modules/.bin/x"):
            program = box.world.home / name
            program.parent.mkdir(parents=True)
            program.write_text("#!/bin/sh\n")
        yield box


# As these tools do: a folder of its own for what is new.
HONEST = """
set -e
mkdir -p ~/.cache/pre-commit ~/.npm/_npx/new/node_modules/.bin ~/.cache/node/corepack/v1/tmp
mkdir ~/.cache/pre-commit/reponew && echo x > ~/.cache/pre-commit/reponew/hook
echo x > ~/.npm/_npx/new/node_modules/.bin/x
echo x > ~/.cache/node/corepack/v1/tmp/pnpm.cjs && mkdir ~/.cache/node/corepack/v1/pnpm
mv ~/.cache/node/corepack/v1/tmp ~/.cache/node/corepack/v1/pnpm/9
"""
# To have it taken for new: a folder that is there is made again, or has one moved on it, or is moved away first.
CHANGES = {
    "written": "echo evil >> $old/bin/hook",
    "beside": "echo evil > $old/bin/other",
    "made again": "mkdir -p $repo $old; mkdir $repo || true; echo evil >> $old/bin/hook",
    "moved on": "mkdir $repo.new $repo/x; mv -T $repo.new $repo || true; echo evil >> $old/bin/hook",
    "moved away": "mv $repo $repo.gone; mkdir -p $old/bin; echo evil > $old/bin/hook",
    "removed": "rm -rf $repo; mkdir -p $old/bin; echo evil > $old/bin/hook",
}


def test_a_cache_that_tools_fill_is_told_in_the_report_alone(caches: Sandbox) -> None:
    told = tell(caches, HONEST)
    for name in (".cache/pre-commit", ".npm/_npx", ".cache/node/corepack"):
        found = told.later(name)
        assert (found["kind"], found["unasked"]) == ("cached-program", False)
        assert found["now"] == "what was there before was not changed" and name in told.text
        assert name not in told.finished.err
    assert len(told.json["later"]) == 3


@pytest.mark.parametrize("change", CHANGES)
def test_a_program_of_a_cache_that_was_there_before_is_told_at_the_end_of_the_run(change: str, caches: Sandbox) -> None:
    names = "repo=~/.cache/pre-commit/repoold; old=$repo/py_env; "
    told = tell(caches, names + CHANGES[change])
    found = told.later(".cache/pre-commit")
    assert (found["kind"], found["unasked"]) == ("cached-program", True)
    assert "changed of what was there before: " in found["now"] and "repoold" in found["now"]
    assert "~/.cache/pre-commit" in told.finished.err and "_npx" not in told.finished.err


def test_settings_that_a_comment_hides_are_told() -> None:
    """Git ends the comment at the line feed alone, so what follows is a setting of `core`."""
    need_root()
    with sandbox() as box:
        told = tell(
            box,
            "git init -q made && rm -rf made/.git/hooks && "
            r"printf '[core]\n\t# \r[foo]\n\tfsmonitor = ./evil.sh\n' >> made/.git/config",
        )
        asked = box.control(["git", "-C", "made", "config", "--get", "core.fsmonitor"])
        assert asked.out == "./evil.sh\n"
        assert told.later("/made")["now"] == "core.fsmonitor = ./evil.sh"
