"""Moves to another mount: what happens to the name next tells whether a rule refused them."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from events_help import ALL, Bench, make_policy, refused

from mcpguard.events.moves import MOST
from mcpguard.model.access import Access, Effect, Verdict
from mcpguard.model.event import Event
from mcpguard.wire.records import Record, SumRecord

Path_ = str | Path


class Tree:
    """Two mounts, `here` and `there`, that a tree may write; in any folder of `here` may be something protected."""

    def __init__(self, root: Path) -> None:
        self.here, self.there = root / "here", root / "there"
        for folder in (self.here / "sub", self.there):
            folder.mkdir(parents=True)
        policy = make_policy(
            (Effect.ALLOW, ALL, str(self.here)),
            (Effect.ALLOW, ALL, str(self.there)),
            (Effect.READONLY, Access.WRITE, f"{self.here}/**/.husky"),
        )
        self.bench = Bench(root, policy)

    def did(self, op: str, path: Path_, path2: Path_ | None = None, error: int = 0) -> Record:
        return refused(op, path, error, access=Access.WRITE, base="", path2=path2, follow=False)

    def moved(self, series: int = 0) -> Record:
        """`it` was to move there."""
        record = self.did("rename", self.here / "sub/../it", self.there / "it", errno.EXDEV)
        return replace(record, series=series)

    def denied(self, *batches: list[Record]) -> list[Event]:
        """What is on record as refused after these, each a second later, and the next three seconds."""
        for batch in (*batches, [], [], []):
            self.bench.feed(*batch)
            self.bench.clock.forward(1.1)
        return self.stored()

    def stored(self) -> list[Event]:
        return [event for event in self.bench.events() if event.verdict is Verdict.DENY]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_what_was_copied_and_unlinked_was_a_file(tree: Tree) -> None:
    assert tree.denied([tree.moved(), tree.did("unlink", tree.here / "it")]) == []


def test_the_record_of_that_may_come_a_moment_later(tree: Tree) -> None:
    assert tree.denied([tree.moved()], [tree.did("unlink", tree.here / "it")]) == []


def test_a_file_that_goes_while_it_is_looked_at_is_told_by_the_next_record(tree: Tree) -> None:
    """It was copied for longer than an interval, and unlinked after the records of the last one were read."""
    assert tree.denied([tree.moved()], [], [], [tree.did("unlink", tree.here / "it")]) == []


def test_a_folder_that_goes_while_it_is_looked_at_is_told(tree: Tree) -> None:
    assert len(tree.denied([tree.moved()], [], [], [tree.did("rmdir", tree.here / "it")])) == 1


def test_a_file_that_is_still_there_was_one(tree: Tree) -> None:
    (tree.here / "it").write_text("kept")
    assert tree.denied([tree.moved()]) == []


def test_a_folder_is_told_at_once(tree: Tree) -> None:
    (tree.here / "it").mkdir()
    tree.bench.feed(tree.moved())
    (event,) = tree.stored()
    assert (event.op, event.path, event.detail) == ("rename", f"{tree.here}/it", "a protected path lies below it")


def test_what_is_gone_and_nobody_saw_go_is_told(tree: Tree) -> None:
    assert len(tree.denied([tree.moved()])) == 1


def test_it_is_told_at_the_end_at_the_latest(tree: Tree) -> None:
    tree.bench.feed(tree.moved())
    assert tree.stored() == []
    tree.bench.recorder.finish()
    assert len(tree.stored()) == 1


@pytest.mark.parametrize(
    "before",
    [
        [("rmdir", "here/it")],
        [("rename", "here/it", "here/other")],
        [("rename", "here", "there/x")],
        [("exchange", "here/file", "here/it")],
        [("unlink", "here")],
        # By a way that led there, and leads elsewhere when it is looked at.
        [("rmdir", "there/link/it"), ("unlink", "there/link"), ("symlink", "there/link", "elsewhere")],
        [("unlink", "there/link/sub")],
        [("rename", "there/new", "there/link/it")],
        [("rename", "here/sub", "here/other"), ("symlink", "here/sub", "there")],
    ],
    ids=lambda acts: "-".join(acts[0]),
)
def test_a_file_in_the_folders_place_does_not_hide_it(before: list[tuple[str, ...]], tree: Tree) -> None:
    root = tree.here.parent
    acts = [tree.did(op, *(root / name for name in names)) for op, *names in before]
    (tree.here / "it").write_text("put there later")
    assert len(tree.denied([tree.moved(), *acts, tree.did("unlink", tree.here / "it")])) == 1


def test_of_too_many_at_once_none_is_hidden(tree: Tree) -> None:
    moves = [tree.did("rename", tree.here / f"it{n}", tree.there / f"it{n}", errno.EXDEV) for n in range(MOST + 1)]
    tree.bench.feed(*moves)
    assert [event.path for event in tree.stored()] == [f"{tree.here}/it{MOST}"]
    assert len(tree.denied([tree.did("unlink", tree.here / f"it{n}") for n in range(MOST)])) == 1


def test_a_folder_that_repeats_what_a_file_did_is_told(tree: Tree) -> None:
    """The kernel only counts what is repeated, so nobody can say whether it was a file each time."""
    tree.bench.feed(tree.moved(series=7), tree.did("unlink", tree.here / "it"))
    tree.bench.recorder.add_sums([SumRecord(series=7, count=3)])
    tree.bench.recorder.finish()
    assert [event.count for event in tree.stored()] == [3]


def test_so_is_one_that_the_kernel_tells_of_later(tree: Tree) -> None:
    first, again = tree.moved(series=7), tree.moved(series=7)
    assert len(tree.denied([first, tree.did("unlink", tree.here / "it")], [again])) == 1
