"""The layer rules, and their twin at run time: what runs as root loads no parser and no screen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PRIVILEGED_LAYERS = ("errors", "model", "policy", "wire", "kernel", "backends", "broker")
IMPORT_ALL = """
import importlib, pkgutil, sys
for layer in sys.argv[2:]:
    module = importlib.import_module(f"mcpguard.{layer}")
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"mcpguard.{layer}."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
foreign = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - {"mcpguard", "__main__"}
above = [name for name in sys.modules if name.startswith("mcpguard.") and name.split(".")[1] not in sys.argv[2:]]
sys.exit(f"foreign: {sorted(foreign)}, from higher layers: {above}" if foreign or above else 0)
"""


def test_the_layer_rules_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_privileged_code_loads_the_standard_library_and_itself_only() -> None:
    """In an isolated interpreter without site-packages, exactly as root starts it."""
    start = f"import sys; sys.path.insert(0, sys.argv[1])\n{IMPORT_ALL}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", start, str(ROOT / "src"), *PRIVILEGED_LAYERS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_protocols_library_is_in_no_message_way() -> None:
    """Its import alone takes a second for each server, and it writes every message anew: only tests ask it."""
    imports = re.compile(r"^\s*(?:from|import) +(?:mcp|mcp_types|pydantic)\b", re.MULTILINE)
    found = {
        part: [path.name for path in (ROOT / part).rglob("*.py") if imports.search(path.read_text())]
        for part in ("src", "tests/unit")
    }
    assert found["src"] == [] and "test_gate_sdk.py" in found["tests/unit"]
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert not [one for one in wanted if re.match(r"(?:mcp|pydantic)\b", one)]
