"""What the tree leaves behind that runs later, outside: refused, told as not stopped, or named at the end of the run.

A person who runs `make` asks for the Makefile; nobody asks for a hook, a task of the editor or a line of a .pth file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Json, Sandbox, assert_names_rule, need_root, sandbox

pytestmark = pytest.mark.kernel

SITE = "venv/lib/python3/site-packages"
# They exist at launch, or the folder does.
REFUSED = (".git/hooks/pre-commit", ".git/config", ".githooks/pre-commit", ".husky/pre-commit", ".vscode/tasks.json")
# Where only Landlock stands they are told instead.
REFUSED_OR_TOLD = (
    *(".envrc", ".mcp.json", ".idea/workspace.xml", ".devcontainer/devcontainer.json", ".devcontainer.json"),
    *(".claude/settings.json", ".cursor/mcp.json", "sub/.envrc"),
)
NAMED = (
    *(".pre-commit-config.yaml", "lefthook.yml", "sub/.vscode/tasks.json", "sub/.mcp.json"),
    *(f"{SITE}/evil.pth", f"{SITE}/sitecustomize.py", "venv/bin/activate"),
)
# Whoever runs these means to run what the project says.
ASKED_FOR = ("Makefile", "package.json", "conftest.py", "setup.py", "venv2/pyvenv.cfg", "venv2/bin/activate")
EVERY = (*REFUSED, *REFUSED_OR_TOLD, *NAMED, *ASKED_FOR)
PLANT = 'mkdir -p "$(dirname "$1")" && echo planted >> "$1"'


@dataclass
class Planted:
    free: Path
    caged: Path
    events: list[Json]
    last_words: str


@pytest.fixture(scope="module")
def planted() -> Iterator[Planted]:
    need_root()
    with sandbox() as free, sandbox() as caged:
        script = "\n".join(f"(set -- {name}; {PLANT})" for name in EVERY)
        for box in (free, caged):
            furnish(box)
        free.control(["sh", "-c", script])
        finished = caged.run(["sh", "-c", script])
        yield Planted(free.world.project, caged.world.project, caged.events(), finished.err)


def furnish(box: Sandbox) -> None:
    project = box.world.project
    box.world.git("config", "core.hooksPath", ".githooks")
    for folder in (".githooks", ".husky", ".vscode", "sub", SITE, "venv/bin"):
        (project / folder).mkdir(parents=True)
    (project / "venv/pyvenv.cfg").write_text("home = /usr/bin\n")


def is_planted(project: Path, name: str) -> bool:
    return (project / name).is_file() and "planted" in (project / name).read_text()


def events_about(planted: Planted, name: str) -> list[Json]:
    """Refusals of the file, or of the folder that had to be made first."""
    places = (str(planted.caged / name), str((planted.caged / name).parent))
    return [e for e in planted.events if e.get("path") in places and e["verdict"] in ("deny", "audit")]


@pytest.mark.parametrize("name", EVERY)
def test_without_mcpguard_it_is_planted(name: str, planted: Planted) -> None:
    assert is_planted(planted.free, name)


@pytest.mark.parametrize("name", REFUSED)
def test_what_runs_unasked_cannot_be_changed(name: str, planted: Planted) -> None:
    assert not is_planted(planted.caged, name)
    found = events_about(planted, name)
    assert found
    assert found[0]["verdict"] == "deny"
    assert_names_rule(found[0], "readonly")


@pytest.mark.parametrize("name", REFUSED_OR_TOLD)
def test_what_was_not_there_is_refused_or_told(name: str, planted: Planted) -> None:
    found = events_about(planted, name)
    assert found
    assert found[0]["verdict"] == ("audit" if is_planted(planted.caged, name) else "deny")
    assert_names_rule(found[0], "")


def test_what_no_rule_keeps_is_named_at_the_end(planted: Planted) -> None:
    named = [line for line in planted.last_words.splitlines() if "without being asked" in line]
    assert len(named) == 1, planted.last_words
    shown = [name for name in NAMED if f"project/{name}" in named[0]]
    assert len(shown) == 5
    assert f"and {len(NAMED) - 5} others" in planted.last_words
    assert all(is_planted(planted.caged, name) for name in NAMED)


@pytest.mark.parametrize("name", ASKED_FOR)
def test_what_a_person_asks_for_is_written_as_ever(name: str, planted: Planted) -> None:
    assert is_planted(planted.caged, name)
    assert not events_about(planted, name)
    assert f"project/{name}" not in planted.last_words
