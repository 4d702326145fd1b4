"""Guarded runs on a kernel that lacks hooks: those whose policy needs one do not start, and say so; others do.

No kernel of the lanes lacks one that a policy needs. So the runs here ask a kernel that does not tell of some of its hooks, and
load no program for them: what only these keep is really open there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import arena
import pytest
from arena import Json
from asked import Lane

from mcpguard.backends import guard
from mcpguard.kernel import pins

pytestmark = pytest.mark.kernel

REPOSITORY = Path(__file__).parents[3]
GONE = ("file_mprotect", "socket_create")
# An engine of its own, without the record of calls: what it lacks must not be found in the one of the other tests.
LACKING = """
import sys
from mcpguard.kernel import btf
tell, gone = btf.functions, set(sys.argv.pop(1).split())
btf.functions = lambda names: {name: one for name, one in tell(names).items() if name not in gone}
from mcpguard.backends import guard
from mcpguard.backends.engine import Engine
specs = lambda way: guard._specs(guard.choose(way))[:-1]
guard.open_engine = lambda way: Engine.open(lambda: specs(way), f"-{way}-lacking", guard._forget)
from mcpguard.cli.main import main
sys.exit(main())
"""
# A socket that the system-call filter refuses, made by a ring.
RING = r"""
import ctypes, errno, mmap, os, struct
libc = ctypes.CDLL(None, use_errno=True)
facts = ctypes.create_string_buffer(120)
ring = libc.syscall(425, 8, facts)
if ring < 0:
    raise SystemExit(errno.errorcode[ctypes.get_errno()])
entries, completions = struct.unpack_from("=2I", facts.raw, 0)
asked, done = struct.unpack_from("=10I", facts.raw, 40), struct.unpack_from("=10I", facts.raw, 80)
shared = mmap.mmap(ring, max(asked[6] + entries * 4, done[5] + completions * 16))
queue = mmap.mmap(ring, entries * 64, offset=0x10000000)
queue[0:64] = struct.pack("=BBHiQQII", 45, 0, 0, 16, 3, 0, 9, 0) + bytes(32)
struct.pack_into("=I", shared, asked[6], 0)
struct.pack_into("=I", shared, asked[1], 1)
libc.syscall(426, ring, 1, 1, 1, None, 0)
result = struct.unpack_from("=Qi", shared, done[5])[1]
print("made" if result >= 0 else errno.errorcode[-result])
"""
NARROW = "files: {{read: [/], write: [{folder}], execute: [/usr, /bin, /lib, /lib64, {python}]}}\n"
OPEN = "files: {{read: [/], write: [{folder}], execute: [/]}}\n"
RINGS = OPEN + "system: {{io_uring: true}}\n"


class Lacking:
    """A workspace in which runs are made."""

    def __init__(self, folder: Path, tier: int) -> None:
        self.folder, self.tier = folder, tier
        (folder / "workspace").mkdir()

    def run(self, rules: str, *options: str, whole: bool = False) -> subprocess.CompletedProcess[str]:
        """A run by these rules; whole: with all hooks that this kernel has."""
        profile = self.folder / "lacking.yaml"
        profile.write_text("name: lacking\n" + rules.format(folder=self.folder / "workspace", python=sys.base_prefix))
        way = {1: guard.LSM, 2: guard.MODIFY_RETURN}[self.tier]
        hooks = {hook.name: hook for group in guard.HOOKS.values() for hook in group}
        gone = " ".join(hooks[name].target(way) for name in GONE)
        ours = ["-m", "mcpguard"] if whole else ["-c", LACKING, gone]
        python = os.path.realpath(sys.executable)
        words = ["run", "--tier", str(self.tier), *options, "-p", str(profile), "--", python, "-I", "-S", "-c", RING]
        return subprocess.run(
            [sys.executable, "-P", *ours, *words],
            cwd=self.folder / "workspace",
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "MCPGUARD_HOME": str(self.folder / "home")},
            capture_output=True,
            text=True,
            check=False,
            timeout=arena.RUN_SECONDS,
        )

    def coverage(self) -> dict[str, Json]:
        """What the latest session says of itself, by kind of rule."""
        with arena.store_at(self.folder / "home") as store:
            return {one.kind: {"strength": str(one.strength), "gaps": one.gaps} for one in store.session(None).coverage}


@pytest.fixture(scope="module")
def lacking(tier: int, lane: Lane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lacking]:
    if tier == 2 and lane.preempts:
        lane.not_here("hooks that can be skipped carry no rule")
    yield Lacking(tmp_path_factory.mktemp("lacking"), tier)
    for folder in pins.folders():
        if folder.endswith("-lacking"):
            pins.remove(folder)


def test_a_policy_that_needs_a_missing_hook_is_refused_with_its_name(lacking: Lacking) -> None:
    done = lacking.run(NARROW)
    assert (done.returncode, done.stdout) == (125, "")
    what, why, do, code = done.stderr.splitlines()
    assert what == "mcpguard: execute rules cannot be enforced on this host"
    assert "this kernel has no hook file_mprotect, which the policy needs" in why
    assert "socket_create" not in done.stderr, "it permits no io_uring"
    assert "--tier 3" in do
    assert "run.not-enforceable" in code


def test_one_that_needs_another_is_refused_with_that(lacking: Lacking) -> None:
    done = lacking.run(RINGS)
    assert (done.returncode, done.stdout) == (125, "")
    assert "processes rules cannot be enforced on this host" in done.stderr
    assert "no hook socket_create, which the policy needs: it permits io_uring" in done.stderr


def test_one_that_needs_none_of_them_runs_in_full(lacking: Lacking) -> None:
    done = lacking.run(OPEN)
    assert (done.returncode, done.stderr.splitlines()[:1]) == (1, ["ENOSYS"]), done
    held = lacking.coverage()
    assert (held["execute"]["strength"], held["processes"]["strength"]) == ("full", "full")


def test_best_effort_runs_with_the_gap_printed_and_on_record(lacking: Lacking) -> None:
    """And it is a gap: with the hook the same is refused."""
    whole = lacking.run(RINGS, whole=True)
    assert whole.stdout.strip() == "EPERM", whole
    done = lacking.run(RINGS, "--best-effort")
    assert (done.returncode, done.stdout.strip()) == (0, "made"), done
    assert "processes rules are not enforced: this kernel has no hook socket_create" in done.stderr
    held = lacking.coverage()["processes"]
    assert held["strength"] == "none"
    assert "socket_create" in "".join(held["gaps"])
    control = subprocess.run([sys.executable, "-I", "-c", RING], capture_output=True, text=True, check=True)
    assert control.stdout.strip() == "made"
