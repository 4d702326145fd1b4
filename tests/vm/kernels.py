"""Debian's stock kernels, downloaded and unpacked but never installed.

Packages come through the host's own apt from the suites it is configured for, so their signatures are checked by apt.
A cache folder holds one unpacked folder per package version, cut down to what a lane can use.
"""

from __future__ import annotations

import functools
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# The kernels in Debian 12's own suites; newer ones are found by `newer`.
STOCK = ("6.1", "6.12")
IMAGE = re.compile(r"linux-image-(\d+)\.(\d+)(?:\.\d+)?[-+a-z0-9.]*-amd64")
VARIANTS = re.compile(r"-(?:cloud|rt)-amd64$")
# From 7.3 on the image package is an empty one that depends on these.
PARTS = re.compile(r"linux-(?:image|binary|modules|base)-\d.*-amd64")
# Drivers of hardware are nine tenths of a kernel's modules, and the guest has none of it.
KEPT_DRIVERS = ("virtio/", "block/virtio_blk.", "block/loop.", "net/veth.", "net/tun.", "net/dummy.")
NEEDED_OPTIONS = ("BPF_LSM", "DEBUG_INFO_BTF", "CGROUP_BPF", "SECURITY_LANDLOCK", "PVH")
DOWNLOAD_SECONDS = 600
# What a compressed kernel image begins with, and what undoes it; Python's own module undoes xz.
DECOMPRESSORS: tuple[tuple[bytes, tuple[str, ...]], ...] = (
    (b"\xfd7zXZ\0", ()),
    (b"\x28\xb5\x2f\xfd", ("zstd", "-dc")),
    (b"\x02\x21\x4c\x18", ("lz4", "-dc")),
    (b"\x1f\x8b\x08", ("gzip", "-dc")),
)


class LaneError(Exception):
    """The lane itself cannot do what was asked; says what to do about it."""


@dataclass(frozen=True)
class Package:
    """One version of one Debian package that apt can download."""

    name: str
    version: str

    @property
    def folder(self) -> str:
        """Name of the folder in the cache that holds this very version."""
        return f"{self.name}_{self.version.replace(':', '%3a')}"


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: `vmlinux` to boot and the modules that a guest can use."""

    folder: Path

    @property
    def vmlinux(self) -> Path:
        return self.folder / "vmlinux"

    @property
    def release(self) -> str:
        """What `uname -r` says in the guest."""
        return (self.folder / "release").read_text().strip()

    @functools.cached_property
    def _modules(self) -> dict[str, Path]:
        return {_module_name(path): path for path in (self.folder / "modules").rglob("*.ko*")}

    @functools.cached_property
    def _builtin(self) -> set[str]:
        return {_module_name(Path(line)) for line in (self.folder / "modules.builtin").read_text().splitlines()}

    def has(self, name: str) -> bool:
        """Whether the kernel can do this, as a module or built in."""
        return name in self._modules or name in self._builtin

    def modules(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """The named modules and all that they depend on, uncompressed, each after what it needs."""
        done: set[str] = set()

        def with_needs(name: str) -> Iterator[tuple[str, bytes]]:
            name = name.replace("-", "_")
            if name in done or name in self._builtin:
                return
            done.add(name)
            if name not in self._modules:
                raise LaneError(
                    f"kernel {self.release} has no module {name}, or the cache dropped it (see KEPT_DRIVERS)"
                )
            content = _unpacked_module(self._modules[name])
            needs = re.search(rb"\0depends=([^\0]*)\0", content)
            for need in needs[1].decode().split(",") if needs else ():
                if need:
                    yield from with_needs(need)
            yield name, content

        for name in names:
            yield from with_needs(name)


def cache() -> Path:
    """Where unpacked packages are kept between runs."""
    return Path(os.environ.get("MCPGUARD_VM_CACHE") or Path.home() / ".cache" / "mcpguard-vm")


def fetch(series: str) -> Kernel:
    """The newest kernel of a series (6.1, 6.12, ...) or of a named package: from the cache, else downloaded."""
    return Kernel(_cached(lambda: _fetch_image(series), lambda: _cached_builds(series)))


def busybox() -> Path:
    """A statically linked busybox: the guest's first programs run before there is a root file system."""
    folder = _cached(_fetch_busybox, lambda: sorted(cache().glob("busybox-static_*")))
    return next(path for path in (folder / "bin/busybox", folder / "usr/bin/busybox") if path.exists())


def headers(kernel: Kernel) -> Path:
    """What a compiler in the guest needs of this kernel: a folder with its `lib/modules` and `usr/src`, kept beside it."""
    target = kernel.folder / "headers"
    if not target.exists():
        package = _candidate(f"linux-headers-{kernel.release}")
        common = [_candidate(need) for need in _depends(package.name) if need.startswith("linux-headers-")]
        _into_cache([package, *common], target, lambda folder: shutil.rmtree(folder / "usr/share"))
    return target


def number(series: str) -> tuple[int, ...]:
    """What series are compared by: 6.12 is newer than 6.1."""
    return tuple(map(int, series.split(".")))


def newer() -> list[str]:
    """Series beyond the stock ones in the suites that this host's apt knows; often none."""
    names = _apt("pkgnames", "linux-image-").split()
    generic = (IMAGE.fullmatch(name) for name in names if not VARIANTS.search(name))
    found = {(int(match[1]), int(match[2])) for match in generic if match}
    known = max(map(number, STOCK))
    return [f"{major}.{minor}" for major, minor in sorted(found) if (major, minor) > known]


def _cached(get: Callable[[], Path], older: Callable[[], list[Path]]) -> Path:
    """What `get` finds or downloads. Package lists that are too old are refreshed; without a network the last one stays."""
    try:
        return get()
    except LaneError:
        if os.geteuid() == 0:
            subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True, timeout=DOWNLOAD_SECONDS)
    try:
        return get()
    except LaneError as error:
        found = older()
        if not found:
            raise
        print(f"vm lane: {error}\nvm lane: using the cached {found[-1].name}", file=sys.stderr, flush=True)
        return found[-1]


def _fetch_image(series: str) -> Path:
    image = _image_package(series)
    target = cache() / image.folder
    if not target.exists():
        _into_cache(_parts(image), target, _cut_down)
        for other in _cached_builds(series):
            if other != target:  # the cache would grow with every security update
                shutil.rmtree(other, ignore_errors=True)
    return target


def _fetch_busybox() -> Path:
    package = _candidate("busybox-static")
    target = cache() / package.folder
    if not target.exists():
        _into_cache([package], target, lambda folder: None)
    return target


def _cached_builds(series: str) -> list[Path]:
    """What the cache has of a series; nothing for a package that was asked for by its name."""
    folders = {folder: IMAGE.fullmatch(folder.name.split("_")[0]) for folder in sorted(cache().glob("linux-image-*_*"))}
    return [folder for folder, match in folders.items() if match and f"{match[1]}.{match[2]}" == series]


def _module_name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def _unpacked_module(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc"], input=content, stdout=subprocess.PIPE, check=True).stdout
    return content


def _apt(*words: str) -> str:
    try:
        return subprocess.run(["apt-cache", *words], check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise LaneError("the VM lane takes its kernels from Debian packages, and this host has no apt-cache") from None
    except subprocess.CalledProcessError as error:
        raise LaneError(f"apt-cache {' '.join(words)}: {error.stderr.strip()}; try `apt-get update` as root") from None


def _candidate(name: str) -> Package:
    version = re.search(r"Candidate: (\S+)", _apt("policy", name))
    if version is None or version[1] == "(none)":
        raise LaneError(f"apt knows no package {name}: run `apt-get update` as root, or configure a suite that has it")
    return Package(name, version[1])


def _depends(name: str) -> list[str]:
    return re.findall(r"^ +Depends: (\S+)", _apt("depends", name), re.MULTILINE)


def _image_package(series: str) -> Package:
    """From a series or a package's name to the package that names one build of a kernel.

    Not by Debian's metapackage, which is another series where apt knows suites of another release as well.
    """
    name = series
    if re.fullmatch(r"\d+\.\d+", name):
        major, minor = name.split(".")
        builds = [
            image
            for image in _apt("pkgnames", f"linux-image-{name}").split()
            if (match := IMAGE.fullmatch(image)) and match.groups() == (major, minor) and not VARIANTS.search(image)
        ]
        if not builds:
            raise LaneError(f"no Linux {series} in the suites that apt is configured for")
        name = max(builds, key=lambda image: [int(number) for number in re.findall(r"\d+", image)])
    for _ in range(3):
        below = [need for need in _depends(name) if need.startswith("linux-image-")]
        if not below:
            return _candidate(name)
        name = below[0]
    raise LaneError(f"{name} leads from one metapackage to the next")


def _parts(image: Package) -> list[Package]:
    needs = [need for need in _depends(image.name) if PARTS.fullmatch(need)]
    return [image, *(_candidate(need) for need in needs)]


def _into_cache(packages: list[Package], target: Path, shape: Callable[[Path], None]) -> None:
    """Download and unpack beside the target and rename: nobody ever sees half a folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"vm lane: downloading {', '.join(package.name for package in packages)}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="unpack-", dir=target.parent) as scratch:
        debs, tree = Path(scratch) / "debs", Path(scratch) / "tree"
        debs.mkdir()
        _download(packages, debs)
        for deb in debs.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", deb, tree], check=True)
        shape(tree)
        try:
            tree.rename(target)
        except OSError:
            if not target.exists():  # else another lane was faster, with the same content
                raise


def _download(packages: list[Package], folder: Path) -> None:
    # apt's own user for downloads cannot write here.
    options = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    names = [f"{package.name}={package.version}" for package in packages]
    command = ["apt-get", "download", "-qq", *options, *names]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
    if done.returncode != 0:
        raise LaneError(f"{' '.join(command)} failed; lists too old? `apt-get update` as root.\n{done.stderr.strip()}")


def _cut_down(tree: Path) -> None:
    """Leave what boots: an uncompressed kernel, its configuration and the modules that a guest can use."""
    modules = next(path for top in ("lib", "usr/lib") for path in tree.glob(f"{top}/modules/*") if path.is_dir())
    image = next(path for path in (tree / f"boot/vmlinuz-{modules.name}", modules / "vmlinuz") if path.exists())
    config = next(path for path in (tree / f"boot/config-{modules.name}", modules / "config") if path.exists())
    options = set(config.read_text().splitlines())
    missing = [option for option in NEEDED_OPTIONS if f"CONFIG_{option}=y" not in options]
    if missing:
        raise LaneError(f"kernel {modules.name} is built without {', '.join(missing)}")
    kept = tree.with_name("kept")
    kept.mkdir()
    (kept / "vmlinux").write_bytes(_uncompressed(image))
    (kept / "release").write_text(modules.name + "\n")
    shutil.copy(config, kept / "config")
    shutil.copy(modules / "modules.builtin", kept)
    shutil.rmtree(modules / "kernel/sound", ignore_errors=True)
    drivers = modules / "kernel/drivers"
    for module in drivers.rglob("*.ko*"):
        if not str(module.relative_to(drivers)).startswith(KEPT_DRIVERS):
            module.unlink()
    (modules / "kernel").rename(kept / "modules")
    shutil.rmtree(tree)
    kept.rename(tree)


def _uncompressed(image: Path) -> bytes:
    """The ELF kernel in a bzImage: qemu enters it directly, which saves seconds of decompression in the guest."""
    content = image.read_bytes()
    for magic, command in DECOMPRESSORS:
        start = content.find(magic)
        while start >= 0:
            packed = content[start:]
            if command:
                # These tools complain of what follows the compressed part, and have written all of it by then.
                plain = subprocess.run(command, input=packed, capture_output=True).stdout
            else:
                try:
                    plain = lzma.LZMADecompressor().decompress(packed)
                except lzma.LZMAError:
                    plain = b""
            if plain.startswith(b"\x7fELF"):
                return plain
            start = content.find(magic, start + 1)
    raise LaneError(f"{image.name} holds no kernel that xz, zstd, lz4 or gzip unpacks")
