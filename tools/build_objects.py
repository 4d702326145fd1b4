"""Build what the package needs besides Python: the BPF objects, and the two libraries that load them.

Runs at build time only (the wheel hook, `make bpf`); standard library only, so that a build needs nothing more.
It never downloads anything and never leaves a half-built object: each one is made beside its place and renamed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "bpf"
OBJECTS = ROOT / "src/mcpguard/_bpf"
LIBRARIES = ROOT / "src/mcpguard/_lib"
LIBRARY_NAMES = ("libbpf.so.1", "libelf.so.1")
OLDEST_CLANG = 14
TARGETS = {"x86_64": "x86", "aarch64": "arm64"}


class BuildError(Exception):
    """The build cannot go on; the message says what to install or correct."""


def machine() -> str:
    """The architecture as wheels name it: `x86_64` or `aarch64`."""
    found = platform.machine()
    if found not in TARGETS:
        raise BuildError(f"mcpguard knows x86_64 and aarch64, not {found}")
    return found


def find_clang() -> str | None:
    """The first clang on PATH that is new enough; `CLANG` in the environment is tried alone."""
    chosen = os.environ.get("CLANG")
    candidates = [chosen] if chosen else ["clang", *(f"clang-{n}" for n in range(30, OLDEST_CLANG - 1, -1))]
    for name in candidates:
        path = shutil.which(name)
        if path and _clang_version(path) >= OLDEST_CLANG:
            return path
    return None


def _clang_version(clang: str) -> int:
    shown = subprocess.run([clang, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"clang version (\d+)", shown)
    return int(found[1]) if found else 0


def find_strip(clang: str) -> str | None:
    """The llvm-strip that belongs to this clang, else any; plain `strip` would damage BPF objects."""
    suffix = re.search(r"-\d+$", clang)
    names = [f"llvm-strip{suffix[0]}"] if suffix else []
    return next((path for path in map(shutil.which, [*names, "llvm-strip"]) if path), None)


def sources() -> list[Path]:
    """The BPF programs, one object each."""
    return sorted(SOURCES.glob("*.bpf.c"))


def build_objects() -> list[Path]:
    """Compile every BPF program whose object is older than the sources.

    Without clang, objects that came with the source distribution are used as they are.

    Raises:
        BuildError: no clang and an object is missing; the compiler's own words when it refuses.
    """
    wanted = {source: OBJECTS / source.name.replace(".bpf.c", ".bpf.o") for source in sources()}
    if not wanted:
        raise BuildError(f"no BPF programs in {SOURCES}")
    newest = max(path.stat().st_mtime_ns for path in _inputs())
    stale = {s: o for s, o in wanted.items() if not o.exists() or o.stat().st_mtime_ns < newest}
    if stale:
        clang = find_clang()
        if clang is None:
            _accept_prebuilt(wanted.values())
        else:
            _compile(stale, clang)
    for leftover in set(OBJECTS.glob("*.bpf.o")) - set(wanted.values()):
        leftover.unlink()
    return sorted(wanted.values())


def _inputs() -> Iterator[Path]:
    yield from sources()
    yield from (SOURCES / "include").glob("*.h")
    yield Path(__file__)


def _accept_prebuilt(objects: Iterable[Path]) -> None:
    missing = [path.name for path in objects if not path.exists()]
    if missing:
        raise BuildError(
            f"clang {OLDEST_CLANG} or newer is needed to build {', '.join(missing)}: "
            "install it (Debian and Ubuntu: apt-get install clang llvm libbpf-dev), "
            "or install the published wheel, which needs no compiler"
        )


def _compile(stale: dict[Path, Path], clang: str) -> None:
    OBJECTS.mkdir(parents=True, exist_ok=True)
    for source, target in stale.items():
        compile_program(source, target, clang)


def compile_program(source: Path, target: Path, clang: str) -> None:
    """Compile one BPF program.

    Raises:
        BuildError: the compiler's own words when it refuses.
    """
    strip = find_strip(clang)
    fresh = target.with_suffix(".new")
    _run([clang, *_flags(), "-c", str(source), "-o", str(fresh)])
    if strip:  # DWARF doubles the size and nothing reads it; BTF stays
        _run([strip, "-g", str(fresh)])
    fresh.replace(target)


def _flags() -> list[str]:
    return [
        *("-O2", "-g", "-Wall", "-target", "bpf", "-mcpu=v3"),
        f"-I{SOURCES / 'include'}",
        f"-I/usr/include/{machine()}-linux-gnu",
        f"-D__TARGET_ARCH_{TARGETS[machine()]}",
        f"-ffile-prefix-map={ROOT}=.",
    ]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def copy_libraries() -> list[Path]:
    """Copy libbpf and libelf from the build host, so that the installed package needs neither.

    Raises:
        BuildError: a library is not on this host.
    """
    LIBRARIES.mkdir(parents=True, exist_ok=True)
    copied = []
    for name in LIBRARY_NAMES:
        found = _system_library(name)
        target = LIBRARIES / name
        if not target.exists() or target.read_bytes() != found.read_bytes():
            fresh = target.with_suffix(".new")
            shutil.copyfile(found, fresh)
            fresh.chmod(0o755)
            fresh.replace(target)
        copied.append(target)
    return copied


def _system_library(name: str) -> Path:
    triplet = f"{machine()}-linux-gnu"
    for folder in (f"/usr/lib/{triplet}", f"/lib/{triplet}", "/usr/lib64", "/lib64", "/usr/lib"):
        path = Path(folder, name)
        if path.exists():
            return path.resolve()
    raise BuildError(f"{name} is not on this host: apt-get install libbpf1 libelf1")


def platform_tag(libraries: Iterable[Path]) -> str:
    """The wheel platform, with the oldest glibc that the bundled libraries accept, read from their symbol versions."""
    needed = (2, 17)
    for library in libraries:
        for major, minor in re.findall(rb"GLIBC_(\d+)\.(\d+)", library.read_bytes()):
            needed = max(needed, (int(major), int(minor)))
    return f"manylinux_{needed[0]}_{needed[1]}_{machine()}"


def main() -> int:
    """Build everything; for `make bpf`."""
    try:
        for path in [*build_objects(), *copy_libraries()]:
            print(f"{path.relative_to(ROOT)}  {path.stat().st_size} bytes")
    except BuildError as error:
        print(f"build_objects: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
