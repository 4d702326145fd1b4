"""Another build of the programs beside the one that guards: nothing opens while it comes, and nothing while it goes.

The other build is one for kernels without hooks for paths, whose programs for inodes no kernel here would load by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import arena  # noqa: F401 (it knows where what follows lies)
import pytest
from asked import Lane
from bare import FREE, VAULT, Bare, bare
from hook_acts import INODES

from mcpguard.backends import guard
from mcpguard.backends.engine import Engine
from mcpguard.kernel import bpf, privileges

pytestmark = pytest.mark.kernel

DISKS = ("ext4", "overlay")
WAIT_S = 120
MOST_INSTRUCTIONS = 100_000


@dataclass
class Counts:
    """What one process of a leaf could open: of a denied file and of one that is allowed."""

    opened: int = 0
    refused: int = 0
    free: int = 0
    free_refused: int = 0


@dataclass
class Seen:
    """What happened while a second build came, judged, and went.

    Attributes:
        coming, going: meanwhile in the leaf of the first.
        unarmed: programs of either that were not attached while both were there.
        gone: whether the second was taken away when nobody needed it any more.
        wrong: acts that the second did not judge rightly, and how, by disk and name.
        cost: instructions of its programs that the verifier looked at.
    """

    coming: Counts
    going: Counts
    unarmed: list[str] = field(default_factory=list)
    gone: bool = False
    wrong: dict[tuple[str, str], str] = field(default_factory=dict)
    cost: dict[str, int] = field(default_factory=dict)


@contextlib.contextmanager
def asking(made: Bare, counts: Counts) -> Iterator[None]:
    """A process of the leaf opens both files again and again."""
    scenes = {name: made.scene(name) for name in (VAULT, FREE)}
    made.live()
    over, answer = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(over[1])
        os.set_blocking(over[0], False)
        made.leaf.enter()
        privileges.drop_capabilities()
        found = [0, 0, 0, 0]
        while True:
            for place, name in enumerate((VAULT, FREE)):
                try:
                    os.close(os.open(scenes[name].path(), os.O_RDONLY))
                    found[2 * place] += 1
                except PermissionError:
                    found[2 * place + 1] += 1
            with contextlib.suppress(BlockingIOError):
                os.read(over[0], 1)
                os.write(answer[1], json.dumps(found).encode())
                os._exit(0)
    os.close(over[0])
    os.close(answer[1])
    try:
        yield
    finally:
        os.close(over[1])
        with os.fdopen(answer[0]) as pipe:
            counts.opened, counts.refused, counts.free, counts.free_refused = json.loads(pipe.read())
        os.waitpid(pid, 0)


def await_end(numbers: list[int]) -> None:
    """Wait until the kernel has taken these programs apart, which it does when nobody waits for it."""
    deadline = time.monotonic() + WAIT_S
    while any(map(bpf.program_exists, numbers)):
        assert time.monotonic() < deadline, "the kernel does not get on"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def seen(lane: Lane, tier: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    way = {1: guard.LSM, 2: guard.MODIFY_RETURN}[tier]
    coming, going = Counts(), Counts()
    with contextlib.ExitStack() as stack:
        first = guard.open_engine(way)
        stack.callback(first.close)
        made = stack.enter_context(bare(first, lane.places("ext4")[0]))
        objects = tmp_path_factory.mktemp("another") / "objects"
        shutil.copytree(bpf.OBJECTS, objects)
        (objects / "more.bpf.o").write_bytes(b"another build")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(bpf, "OBJECTS", objects)
            choice = guard.choose(way, without_paths=True)
            with asking(made, coming):
                # Without the record of calls, which this is not about.
                second = Engine.open(lambda: guard._specs(choice)[:-1], f"-{way}")
        folder = second._folder
        result = Seen(coming, going)
        try:
            numbers = [bpf.program_id(second.program(name)) for name in second.programs]
            result.cost = {name: bpf.program_facts(second.program(name)).verified_insns for name in second.programs}
            for disk in DISKS:
                with bare(second, lane.places(disk)[0]) as other:
                    result.unarmed += [*guard.detach_verify(first), *guard.detach_verify(second)]
                    for name, act in INODES.items():
                        try:
                            other.assert_refused(act)
                        except AssertionError as wrong:
                            result.wrong[disk, name] = str(wrong)
        finally:
            second.close()
        with asking(made, going):
            guard.open_engine(way).close()
            await_end(numbers)
        result.gone = not os.path.exists(folder)
        yield result


@pytest.mark.parametrize("when", ["coming", "going"])
def test_no_open_is_judged_wrongly_while_another_build_comes_or_goes(
    when: str, tier: int, lane: Lane, seen: Seen
) -> None:
    """Where the kernel may skip programs of tier 2 they are no promise by themselves."""
    counts = seen.coming if when == "coming" else seen.going
    assert min(counts.refused, counts.free) > 0
    assert counts.free_refused == 0
    if tier == 1 or not lane.preempts:
        assert counts.opened == 0


def test_both_were_whole_until_nobody_needed_the_other(seen: Seen) -> None:
    assert seen.unarmed == []
    assert seen.gone


@pytest.mark.parametrize("name", INODES)
@pytest.mark.parametrize("disk", DISKS)
def test_where_there_are_no_hooks_for_paths_those_for_inodes_refuse_the_same(disk: str, name: str, seen: Seen) -> None:
    """An overlay asks each of them twice: for itself, and for the layer below."""
    assert (disk, name) not in seen.wrong, seen.wrong[disk, name]


def test_what_stands_in_for_them_costs_the_verifier_no_more(seen: Seen) -> None:
    hooks = {hook.name for group in guard.HOOKS.values() for hook in group if hook.instead}
    cost = {name: count for name, count in seen.cost.items() if name[len("mg_lsm_") :] in hooks}
    assert len(cost) == len(hooks)
    out = os.environ.get("MCPGUARD_LANE_OUT")
    if out:
        told = {"kernel": os.uname().release, "verified_insns": dict(sorted(cost.items()))}
        (Path(out) / "verifier-inodes.json").write_text(json.dumps(told, indent=1) + "\n")
    assert {name: count for name, count in cost.items() if not 0 < count < MOST_INSTRUCTIONS} == {}
