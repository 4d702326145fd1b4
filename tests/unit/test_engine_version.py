"""The name of the engine of these objects: another byte is another engine, and what nobody touched is not read again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mcpguard.broker import tiers
from mcpguard.kernel import pins


@pytest.fixture
def objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two objects that were not changed just now, as far as the clock is asked."""
    monkeypatch.setattr(pins, "_VERSION", f"{tmp_path}/objects.json")
    monkeypatch.setattr(pins, "_SETTLED_S", -60)
    folder = tmp_path / "objects"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.bpf.o").write_bytes(name.encode())
    return folder


def version(folder: Path, layout: int = 1) -> str:
    return pins.version.__wrapped__(folder, layout)


def remembered_as(name: str) -> None:
    kept = Path(pins._VERSION)
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"version": name}))


def test_files_that_nobody_touched_are_not_read_again(objects: Path) -> None:
    version(objects)
    remembered_as("from before")
    assert version(objects) == "from before"


def test_another_byte_is_another_version_also_where_size_and_times_are_put_back(objects: Path) -> None:
    before = version(objects)
    remembered_as("from before")
    file = objects / "two.bpf.o"
    times = file.stat()
    file.write_bytes(b"TWO")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert version(objects) not in (before, "from before")


@pytest.mark.parametrize("change", ["one more", "one less", "renamed", "replaced", "layout", "folder"])
def test_other_files_or_another_layout_are_not_what_was_remembered(objects: Path, change: str) -> None:
    version(objects)
    remembered_as("from before")
    match change:
        case "one more":
            (objects / "three.bpf.o").write_bytes(b"three")
        case "one less":
            (objects / "two.bpf.o").unlink()
        case "renamed":
            (objects / "two.bpf.o").rename(objects / "zwei.bpf.o")
        case "replaced":
            (objects / "other").write_bytes(b"two")
            (objects / "other").replace(objects / "two.bpf.o")
        case "folder":
            objects = objects.rename(objects.with_name("moved"))
    assert version(objects, 2 if change == "layout" else 1) != "from before"


def test_what_was_changed_just_now_is_not_remembered(objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "_SETTLED_S", 3600)
    version(objects)
    assert not Path(pins._VERSION).exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 1}', "\udcff"])
def test_a_damaged_memory_is_none(objects: Path, text: str) -> None:
    right = version(objects)
    Path(pins._VERSION).write_text(text, encoding="utf-8", errors="surrogateescape")
    assert version(objects) == right


def test_what_root_remembers_is_roots_alone_whatever_mask_it_runs_with(objects: Path) -> None:
    before = os.umask(0)
    try:
        version(objects)
    finally:
        os.umask(before)
    assert Path(pins._VERSION).stat().st_mode & 0o777 == 0o600


def test_nobody_but_root_can_say_which_tiers_a_kernel_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "tiers.json"
    monkeypatch.setattr(tiers, "REFUSED_TIERS", str(kept))
    before = os.umask(0)
    try:
        tiers._remember({1: "no hooks"}, narrow=True)
    finally:
        os.umask(before)
    assert kept.stat().st_mode & 0o777 == 0o644
    assert tiers._remembered() == ({1: "no hooks"}, True)


def test_what_is_no_engine_has_no_links_and_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "ROOT", str(tmp_path))
    (tmp_path / "engine" / pins.LINKS / "one").mkdir(parents=True)
    (tmp_path / "half-removed").mkdir()
    assert pins.links() == 1
