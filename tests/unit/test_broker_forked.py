"""The broker that is a copy of root's `mcpguard run` imports from where an isolated interpreter would, whatever came."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mcpguard

SOURCE = Path(mcpguard.__path__[0]).parent
# What it was given: a finder of its own, a hook, and folders in front of all others and behind them.
GIVEN = """
import sys
class Eager:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("colorsys", "planted"):
            print("asked for", name)
def hook(path):
    print("asked for", path)
    raise ImportError
sys.meta_path.insert(0, Eager)
sys.path_hooks.insert(0, hook)
sys.path[:] = [sys.argv[1], *sys.path, sys.argv[1]]
"""
COPY = "from mcpguard.broker import forked; forked._isolate(); print('copied')"
LOOK = """
import colorsys
print(colorsys.__file__)
try:
    import planted
    print(planted.__file__)
except ImportError:
    print("nothing planted")
import mcpguard.broker.__main__
print(mcpguard.broker.__main__.__file__)
"""


def seen(folder: Path, *steps: str) -> list[str]:
    for name in ("colorsys", "planted"):
        (folder / f"{name}.py").write_text("")
    code = "\n".join(("import sys; sys.path.insert(0, sys.argv[2])", *steps))
    command = [sys.executable, "-c", code, str(folder), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return done.stdout.split("copied\n")[-1].splitlines()


def test_nothing_that_the_process_was_given_is_asked(tmp_path: Path) -> None:
    plain = seen(tmp_path, GIVEN, LOOK)
    assert f"{tmp_path}/colorsys.py" in plain and f"{tmp_path}/planted.py" in plain and "asked for planted" in plain
    library, planted, own = seen(tmp_path, GIVEN, COPY, LOOK)
    assert Path(library).parent == Path(subprocess.__file__).parent
    assert planted == "nothing planted"
    assert own == f"{SOURCE}/mcpguard/broker/__main__.py"
