"""Names resolved as the kernel does, in the host's view."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path

import pytest

from mcpguard.events.hostpath import Caller, Folders, caller_of, resolve
from mcpguard.wire.records import Head

ME = Caller(os.getpid(), os.getpid())
DEAD = Caller(4_194_304, 4_194_304, "/dead/cwd")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path.resolve()
    (root / "real").mkdir()
    (root / "real" / "file").write_text("x")
    (root / "link").symlink_to("real/file")
    (root / "absolute").symlink_to(root / "real")
    (root / "loop").symlink_to("loop")
    return root


def test_a_relative_path_starts_from_its_base(tree: Path) -> None:
    assert resolve(str(tree), "real/file", ME, follow=True) == f"{tree}/real/file"


def test_an_empty_path_is_the_base_itself(tree: Path) -> None:
    assert resolve(f"{tree}/real/file", "", ME, follow=True) == f"{tree}/real/file"


def test_links_are_followed_and_the_last_one_only_when_the_call_does(tree: Path) -> None:
    assert resolve(str(tree), "link", ME, follow=True) == f"{tree}/real/file"
    assert resolve(str(tree), "link", ME, follow=False) == f"{tree}/link"
    assert resolve("/", f"{tree}/absolute/file", ME, follow=False) == f"{tree}/real/file"


def test_a_closing_slash_follows_the_last_link(tree: Path) -> None:
    assert resolve(str(tree), "absolute/", ME, follow=False) == f"{tree}/real"


def test_dots_are_taken_from_the_real_place_not_from_the_text(tree: Path) -> None:
    (tree / "elsewhere").symlink_to("/usr/bin")
    assert resolve(str(tree), "elsewhere/../lib/./x", ME, follow=True) == "/usr/lib/x"


def test_dots_above_the_root_stay_at_the_root() -> None:
    assert resolve("/", "../../nowhere-at-all", ME, follow=True) == "/nowhere-at-all"


def test_a_name_that_does_not_exist_keeps_its_text(tree: Path) -> None:
    assert resolve(str(tree), "absolute/new/file", ME, follow=True) == f"{tree}/real/new/file"


def test_a_link_to_itself_ends(tree: Path) -> None:
    assert resolve(str(tree), "loop", ME, follow=True) == f"{tree}/loop"


def test_proc_self_is_the_caller_and_not_the_reader() -> None:
    assert resolve("/", "/proc/self/environ", DEAD, follow=True) == f"/proc/{DEAD.pid}/environ"
    assert resolve("/", "/proc/thread-self/stat", DEAD, follow=True) == f"/proc/{DEAD.pid}/task/{DEAD.tid}/stat"


def test_proc_root_leads_to_the_host_even_of_a_dead_process() -> None:
    assert resolve("/", "/proc/self/root/etc/shadow", DEAD, follow=True) == "/etc/shadow"


def test_proc_cwd_of_a_dead_caller_is_where_its_call_started() -> None:
    assert resolve("/", "/proc/self/cwd/key", DEAD, follow=True) == "/dead/cwd/key"


def test_proc_fd_of_a_living_process_is_its_file(tree: Path) -> None:
    descriptor = os.open(tree / "real", os.O_RDONLY)
    try:
        assert resolve("/", f"/proc/self/fd/{descriptor}/file", ME, follow=True) == f"{tree}/real/file"
    finally:
        os.close(descriptor)


def test_proc_fd_of_a_deleted_file_loses_the_kernels_mark(tree: Path) -> None:
    descriptor = os.open(tree / "real" / "file", os.O_RDONLY)
    (tree / "real" / "file").unlink()
    try:
        assert resolve("/", f"/proc/self/fd/{descriptor}", ME, follow=True) == f"{tree}/real/file"
    finally:
        os.close(descriptor)


def test_what_the_kernel_told_of_a_descriptor_counts_when_nobody_can_be_asked() -> None:
    head = Head(0, DEAD.pid, DEAD.tid, 1, "x", 0)
    for path, found in (
        ("/proc/self/fd/7", "/home/u/.ssh"),
        ("/dev/fd/7/key", "/home/u/.ssh/key"),
        ("/proc/thread-self/fd/7/../x", "/home/u/x"),
        ("/proc/self/fd/07", f"/proc/{DEAD.pid}/fd/07"),
        ("/proc/4194303/fd/7", "/proc/4194303/fd/7"),
        ("/proc/self/fd/8", f"/proc/{DEAD.pid}/fd/8"),
    ):
        told = "/home/u/.ssh" if "8" not in path else "/"
        assert resolve("", path, caller_of(head, told, path, ""), follow=True) == found
    for odd in ("\u0667", "7\n", "7x"):
        assert caller_of(head, "/b", f"/ws/fd/{odd}/fd/8", "").descriptor == 8, "to the kernel the first is none"
    assert caller_of(head, "/b", "/ws/fd/7\n", "").descriptor == -1
    assert caller_of(head, "/cwd", "name", "/cwd") == Caller(DEAD.pid, DEAD.tid, "/cwd")


def test_proc_cwd_is_where_the_caller_stood_and_not_where_it_stands(tree: Path) -> None:
    head = Head(0, ME.pid, ME.tid, 1, "x", 0)
    stood = str(tree)
    assert os.getcwd() != stood
    for base, path in (
        ("", "/proc/self/cwd/link"),
        ("", "/proc/thread-self/cwd/link"),
        ("", f"/proc/{ME.pid}/cwd/link"),
        ("", f"/proc/{ME.pid}/task/{ME.tid}/cwd/link"),
        (f"/proc/{ME.pid}", "cwd/link"),
        ("/elsewhere", "/proc/self/cwd/fd/7/../../link"),
    ):
        assert resolve(base, path, caller_of(head, base, path, stood), follow=True) == f"{tree}/real/file", path
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=tree / "real") as other:
        path = f"/proc/{other.pid}/cwd/file"
        assert resolve("", path, caller_of(head, "", path, stood), follow=True) == f"{tree}/real/file"


def test_without_a_word_of_the_kernel_proc_cwd_is_where_the_caller_stands() -> None:
    head = Head(0, ME.pid, ME.tid, 1, "x", 0)
    here = os.getcwd()
    assert resolve("", "/proc/self/cwd/x", caller_of(head, "", "/proc/self/cwd/x", ""), follow=True) == f"{here}/x"


@pytest.mark.parametrize("link", ["fd/7", "task/4194304/fd/7", "cwd", "exe"])
def test_behind_a_link_of_proc_that_nobody_can_read_any_more_a_name_stays_as_it_was_given(link: str) -> None:
    """A name that was made up of what is left would be that of another file."""
    gone = Caller(DEAD.pid, DEAD.tid)
    for base, path in (("", f"/proc/self/{link}/../x"), (f"/proc/{DEAD.pid}", f"{link}/../x")):
        assert resolve(base, path, gone, follow=True) == f"/proc/{DEAD.pid}/{link}/../x"
        assert Folders().resolve(base, path, gone, follow=False) == f"/proc/{DEAD.pid}/{link}/../x"
    assert resolve("", f"/proc/self/{link}", gone, follow=True) == f"/proc/{DEAD.pid}/{link}"
    assert resolve("", "/proc/self/stat/../x", gone, follow=True) == f"/proc/{DEAD.pid}/x"


def test_a_pipe_is_no_path() -> None:
    reader, writer = os.pipe()
    try:
        assert resolve("/", f"/proc/self/fd/{reader}", ME, follow=True) == f"/proc/{ME.pid}/fd/{reader}"
    finally:
        os.close(reader)
        os.close(writer)


def test_a_name_with_a_nul_does_no_harm() -> None:
    assert resolve("/", "/usr/a\0b", ME, follow=True) == "/usr/a\0b"


def test_many_paths_of_one_moment_are_resolved_as_each_by_itself(tree: Path) -> None:
    (tree / "process").symlink_to("/proc/self")
    (tree / "elsewhere").symlink_to("/usr/bin")
    names = [
        "real/file",
        "link",
        "absolute/file",
        "absolute/",
        "absolute/.",
        "absolute/..",
        "loop",
        "loop/file",
        "none",
    ]
    names += ["elsewhere/../lib/x", "process/cwd/x", "process/root/etc", "/proc/self/fd/0", "/x", "/", "", "..", "//x"]
    others = [Caller(4_194_303, 4_194_303, "/other/cwd")]
    folders = Folders()
    for name, caller, follow, _again in itertools.product(names, [ME, DEAD, *others], (True, False), range(2)):
        alone = resolve(str(tree), name, caller, follow=follow)
        assert folders.resolve(str(tree), name, caller, follow=follow) == alone, (name, caller, follow)


def test_a_folder_is_read_again_when_it_is_told_to(tree: Path) -> None:
    folders = Folders()
    assert folders.resolve(str(tree), "absolute/new", ME, follow=False) == f"{tree}/real/new"
    (tree / "absolute").unlink()
    (tree / "absolute").symlink_to("/usr")
    assert folders.resolve(str(tree), "absolute/new", ME, follow=False) == f"{tree}/real/new"
    folders.forget()
    assert folders.resolve(str(tree), "absolute/new", ME, follow=False) == "/usr/new"
