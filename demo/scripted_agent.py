"""Stands in for a real agent where npm cannot provide one: does the scripted tool calls itself, with no model at all.

`scripted_agent.py CALLS` reads a JSON list of `[tool, arguments]` and prints the results as the real agent of the demo
does. It is no agent, and the demo says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read(file_path: str) -> str:
    return Path(file_path).read_text()


def edit(file_path: str, old_string: str, new_string: str) -> str:
    path = Path(file_path)
    path.write_text(path.read_text().replace(old_string, new_string, 1))
    return "edited"


def bash(command: str) -> str:
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(done.stderr.strip())
    return done.stdout


TOOLS: dict[str, Callable[..., str]] = {"Read": read, "Edit": edit, "Bash": bash}


def call(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"tool": tool, "error": False, "text": TOOLS[tool](**arguments)}
    except OSError as refused:
        return {"tool": tool, "error": True, "text": str(refused)}


def main() -> int:
    results = [call(tool, arguments) for tool, arguments in json.loads(sys.argv[1])]
    sys.stdout.write(json.dumps({"result": "DONE " + json.dumps(results)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
