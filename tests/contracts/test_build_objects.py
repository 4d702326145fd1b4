"""The build: rebuilt when sources change, content with prebuilt objects without a compiler, clear when it fails."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import build_objects

PROGRAM = """
#include <linux/bpf.h>
__attribute__((section("socket"), used)) int mg_nothing(void *context) { return RETURNED; }
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one tiny program and one header."""
    (tmp_path / "bpf/include").mkdir(parents=True)
    (tmp_path / "bpf/include/value.h").write_text("#define RETURNED 1\n")
    (tmp_path / "bpf/tiny.bpf.c").write_text('#include "value.h"\n' + PROGRAM)
    for name, place in (("SOURCES", "bpf"), ("OBJECTS", "objects"), ("LIBRARIES", "libraries")):
        monkeypatch.setattr(build_objects, name, tmp_path / place)
    return tmp_path


def test_an_object_is_built_once_and_again_when_a_header_changes(project: Path) -> None:
    (built,) = build_objects.build_objects()
    first = built.stat().st_mtime_ns, built.read_bytes()
    build_objects.build_objects()
    assert built.stat().st_mtime_ns == first[0]
    header = project / "bpf/include/value.h"
    header.write_text("#define RETURNED 2\n")
    os.utime(header, ns=(first[0] + 1, first[0] + 1))
    build_objects.build_objects()
    assert built.read_bytes() != first[1]


def test_an_object_without_a_source_is_removed(project: Path) -> None:
    build_objects.build_objects()
    (project / "objects/old.bpf.o").write_bytes(b"old")
    build_objects.build_objects()
    assert [path.name for path in (project / "objects").iterdir()] == ["tiny.bpf.o"]


def test_without_a_compiler_prebuilt_objects_are_used(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "objects").mkdir()
    prebuilt = project / "objects/tiny.bpf.o"
    prebuilt.write_bytes(b"prebuilt")
    os.utime(prebuilt, ns=(0, 0))
    monkeypatch.setattr(build_objects, "find_clang", lambda: None)
    assert build_objects.build_objects() == [prebuilt]
    assert prebuilt.read_bytes() == b"prebuilt"


def test_without_a_compiler_and_without_objects_the_error_says_what_to_install(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_objects, "find_clang", lambda: None)
    with pytest.raises(build_objects.BuildError, match=r"clang 14 or newer .* apt-get install clang"):
        build_objects.build_objects()


def test_a_source_that_does_not_compile_leaves_the_old_object_and_shows_the_compilers_words(project: Path) -> None:
    (built,) = build_objects.build_objects()
    before = built.read_bytes()
    source = project / "bpf/tiny.bpf.c"
    source.write_text("this is not C\n")
    os.utime(source, ns=(built.stat().st_mtime_ns + 1,) * 2)
    with pytest.raises(build_objects.BuildError, match="error: unknown type name 'this'"):
        build_objects.build_objects()
    assert built.read_bytes() == before


def test_the_wheel_names_the_newest_glibc_that_a_library_asks_for(tmp_path: Path) -> None:
    library = tmp_path / "lib.so.1"
    library.write_bytes(b"\0GLIBC_2.4\0GLIBC_2.33\0GLIBC_2.9\0")
    assert build_objects.platform_tag([library]).startswith("manylinux_2_33_")
    library.write_bytes(b"\0GLIBC_2.4\0")
    assert build_objects.platform_tag([library]).startswith("manylinux_2_17_")
