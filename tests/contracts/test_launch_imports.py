"""What a launch imports: everybody waits for it, at every start of an agent. A budget in modules, for milliseconds lie.

Whoever goes over it finds a later moment for the import, or a number that is worth it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mcpguard.session.run import _LATER as LATER_ON

SOURCE = Path(__file__).parent.parent.parent / "src"
# Each of these costs milliseconds, alone or with what it brings along, and nothing on the way needs it.
NEVER = {
    *(
        "argparse",
        "asyncio",
        "concurrent.futures",
        "dataclasses",
        "email",
        "hashlib",
        "importlib.metadata",
        "importlib.resources",
    ),
    *(
        "inspect",
        "datetime",
        "ipaddress",
        "json",
        "logging",
        "pathlib",
        "platform",
        "random",
        "secrets",
        "shutil",
        "subprocess",
        "tempfile",
        "traceback",
        "typing",
    ),
    *("unittest", "urllib", "uuid"),
    *("click", "platformdirs", "psutil", "pyseccomp", "rich", "textual", "typer", "yaml"),
    *("mcpguard.policy.compile", "mcpguard.profile.load", "mcpguard.profile.parse", "mcpguard.session.install"),
}
# Nor these until the broker is started.
LATER = {"mcpguard.cli.render", "mcpguard.cli.plain_words", "mcpguard.model.plain_json"}
BEFORE_THE_BROKER = ("mcpguard.cli.main", "mcpguard.cli.run", "mcpguard.session.start")
BEFORE_THE_REQUEST = (
    *BEFORE_THE_BROKER,
    *("mcpguard.cli.plain_words", "mcpguard.session.resolver", "mcpguard.session.run"),
)
RECORDED = (*BEFORE_THE_REQUEST, "mcpguard.session.recording")
# What the record's threads begin with, and what the end of a run takes.
ALL = (*RECORDED, *LATER_ON, "mcpguard.events.ends", "mcpguard.events.flows")
BROKER = ("mcpguard.broker.__main__",)


def imported(modules: tuple[str, ...]) -> set[str]:
    """What these bring into an interpreter that has nothing else."""
    code = (
        "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1]); import importlib\n"
        "for name in sys.argv[2:]: importlib.import_module(name)\n"
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(SOURCE), *modules], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


# The numbers of all modules leave room for what other versions of Python import by themselves.
@pytest.mark.parametrize(
    ("modules", "ours", "all_of_them"),
    [
        (BEFORE_THE_BROKER, 14, 58),
        (BEFORE_THE_REQUEST, 63, 122),
        (RECORDED, 73, 138),
        (ALL, 103, 166),
        (BROKER, 45, 106),
    ],
    ids=["before the broker", "before the request", "until it is recorded", "all", "broker"],
)
def test_a_launch_imports_no_more_than_it_needs(modules: tuple[str, ...], ours: int, all_of_them: int) -> None:
    found = imported(modules)
    assert not found & NEVER
    if modules == BEFORE_THE_BROKER:
        assert not found & LATER
    if modules == BEFORE_THE_REQUEST:
        assert "ctypes" not in found, "what it is needed for comes while the child confines itself"
    own = {name for name in found if name.startswith("mcpguard")}
    assert len(own) <= ours, sorted(own)
    assert len(found) <= all_of_them, sorted(found - own)
