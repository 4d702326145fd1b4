"""A tree nested deeper than any path can say: a run begins, what lies above works, and what lies below stays closed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
from harness import SYSTEM_PYTHON, Finished, Sandbox, need_root, sandbox

from mcpguard.session.files_state import MAX_DEPTH

pytestmark = pytest.mark.kernel

LEVELS = 1_200
# Down by steps, each relative to the one before, as no call takes so long a path.
WALK = """
import errno, json, os, sys
start, levels, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
at = os.open(start, os.O_PATH | os.O_DIRECTORY)
depth = 0
try:
    for depth in range(levels):
        below = os.open("d", os.O_PATH | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    with open(os.open(name, os.O_RDONLY, dir_fd=at)) as file:
        print(json.dumps({"read": file.read()}))
except OSError as error:
    print(json.dumps({"refused": errno.errorcode[error.errno], "at": depth}))
"""
DIG = """
import os, sys
os.mkdir(sys.argv[1]); os.chdir(sys.argv[1])
for _ in range(int(sys.argv[2])):
    os.mkdir("d"); os.chdir("d")
open(".env", "w").write("TOKEN=deep")
open("plain", "w").write("plain")
"""


@pytest.fixture
def box() -> Iterator[Sandbox]:
    need_root()
    with sandbox() as made:
        made.write_profile("deep", "name: deep\nextends: [dev-tools]\nfiles:\n  write: ['{workspace}']\n")
        pit = str(made.world.project / "pit")
        subprocess.run([SYSTEM_PYTHON, "-c", DIG, pit, str(LEVELS)], check=True)
        try:
            yield made
        finally:
            # By a program that is not afraid of depth.
            subprocess.run(["rm", "-rf", str(made.world.root)], check=True)


def told(finished: Finished) -> dict[str, object]:
    assert finished.code == 0, finished.err
    (line,) = finished.json_lines()
    return line


@pytest.mark.parametrize("name", [".env", "plain"])
def test_what_lies_too_deep_is_refused_and_on_record(box: Sandbox, name: str) -> None:
    words = [SYSTEM_PYTHON, "-c", WALK, "pit", str(LEVELS), name]
    assert "read" in told(box.control(words))
    answer = told(box.run(words))
    assert answer["refused"] == "EACCES", answer
    (denied,) = [event for event in box.denials() if event.get("path", "").endswith("/d/d/d")]
    assert denied["errno"] == "EACCES"
    assert denied["pid"] > 0


def test_what_lies_above_works_and_the_rest_is_told(box: Sandbox) -> None:
    project = box.world.project
    (project / "pit/plain").write_text("above")
    (project / "pit/.env").write_text("TOKEN=above")
    script = "cat pit/plain; echo made > pit/d/made && cat pit/d/made; cat pit/.env"
    finished = box.run(["sh", "-c", script])
    assert finished.out == "abovemade\n"
    assert "lies too deep to be looked at" in finished.err
    (session,) = [json.loads(line) for line in box.mcpguard("sessions", "--format", "json").out.splitlines()]
    (files,) = [held for held in session["coverage"] if held["kind"] == "files"]
    assert [gap for gap in files["gaps"] if "too deep" in gap], files
    assert [event for event in box.denials() if event.get("path") == str(project / "pit/.env")]


def test_a_shorter_way_to_it_opens_nothing(box: Sandbox) -> None:
    """A folder in the middle is renamed upwards, so that what lay too deep has a short path."""
    up = MAX_DEPTH - 100
    move = f"import os; os.rename('pit/' + '/'.join('d' * {up}), 'short')"
    for name in (".env", "plain"):
        rest = LEVELS - up
        script = f'{SYSTEM_PYTHON} -c "{move}" && exec "$@"'
        words = ["sh", "-c", script, "sh", SYSTEM_PYTHON, "-c", WALK, "short", str(rest), name]
        back = box.world.project / "short"
        assert "read" in told(box.control(words))
        back.rename(box.world.project.joinpath("pit", *"d" * up))
        answer = told(box.run(words))
        assert answer["refused"] == "EACCES", answer
        assert [event for event in box.denials() if event.get("path", "").endswith("/d/d/d")]
        assert back.exists()
        back.rename(box.world.project.joinpath("pit", *"d" * up))


def test_the_cover_itself_can_neither_be_moved_nor_removed(box: Sandbox) -> None:
    project = box.world.project
    covered = MAX_DEPTH - str(project / "pit").count("/")
    act = f"""
import errno, json, os
at = os.open("pit", os.O_PATH | os.O_DIRECTORY)
for _ in range({covered} - 1):
    at = os.open("d", os.O_PATH | os.O_DIRECTORY, dir_fd=at)
try:
    os.rename("d", "away", src_dir_fd=at, dst_dir_fd=at)
    print(json.dumps({{"done": True}}))
except OSError as error:
    print(json.dumps({{"refused": errno.errorcode[error.errno]}}))
"""
    words = [SYSTEM_PYTHON, "-c", act]
    assert told(box.control(words)) == {"done": True}
    # Where it was, for the guarded one.
    undo = act.replace('"d", "away"', '"away", "d"')
    assert told(box.control([SYSTEM_PYTHON, "-c", undo])) == {"done": True}
    assert told(box.run(words)) == {"refused": "EBUSY"}
