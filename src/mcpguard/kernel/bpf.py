"""BPF objects, programs and maps: open, load, attach, pin, read and write.

It knows names and bytes, not their meaning; `wire` does. What is attached to a cgroup stays as long as the cgroup; a map, a
program or a link as long as a descriptor or a pin.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping

from mcpguard.errors import HostError, KernelError
from mcpguard.kernel import libbpf
from mcpguard.model.values import dataclass

OBJECTS = f"{os.path.dirname(os.path.dirname(os.path.realpath(__file__)))}/_bpf"
LOG_BYTES = 1 << 20
CONFIG_SECTION = ".rodata.config"
# What one call reads; the kernel refuses it where one bucket holds more.
_BATCH, _LARGEST_BATCH = 128, 1 << 16
_LONGEST_KEY = 512
_STATS_RUN_TIME = 0
_PERF_EVENT = 41
Shape = tuple[int, int, int, int, int]
"""kind, bytes of a key, bytes of a value, entries, flags; an inner map has the shape that its outer map was declared with"""


def create_map(kind: int, name: str, key_bytes: int, value_bytes: int, entries: int, flags: int = 0) -> int:
    """Make a map; returns its descriptor. Raises KernelError."""
    options = libbpf.MapCreateOptions(sz=ctypes.sizeof(libbpf.MapCreateOptions), map_flags=flags)
    return int(
        libbpf.call(
            "bpf_map_create", kind, name.encode(), key_bytes, value_bytes, entries, ctypes.byref(options), about=name
        )
    )


class Object:
    """One compiled object: opened, given borrowed maps, loaded. Close it when its programs are pinned or attached.

    Programs stay in the kernel while they are attached, pinned or open; `close` ends only our hold.
    """

    def __init__(self, name: str, folder: str | None = None) -> None:
        """Read and open `<name>.bpf.o`; nothing is in the kernel yet.

        Args:
            folder: where it lies, if not in the package.

        Raises:
            HostError: the object is not in the package.
            KernelError: it is not a BPF object.
        """
        path = f"{folder or OBJECTS}/{name}.bpf.o"
        try:
            with open(path, "rb") as file:
                self._bytes = file.read()
        except OSError as error:
            raise HostError(
                f"the BPF object {name} is missing",
                why=f"{path}: {error.strerror}",
                do="reinstall mcpguard; in a source tree run `make bpf`",
                code="host.no-object",
            ) from None
        self.name = name
        self._log = ctypes.create_string_buffer(LOG_BYTES)
        self._options = libbpf.OpenOptions(
            sz=ctypes.sizeof(libbpf.OpenOptions),
            object_name=name.encode(),
            kernel_log_buf=ctypes.addressof(self._log),
            kernel_log_size=LOG_BYTES,
        )
        self._handle: int | None = libbpf.call(
            "bpf_object__open_mem", self._bytes, len(self._bytes), ctypes.byref(self._options), about=name
        )
        self._maps = dict(self._walk("bpf_object__next_map", "bpf_map__name"))
        self._programs = dict(self._walk("bpf_object__next_program", "bpf_program__name"))

    def _walk(self, step: str, name: str) -> Iterator[tuple[str, int]]:
        library = libbpf.library()
        found = getattr(library, step)(self._handle, None)
        while found:
            yield getattr(library, name)(found).decode(), found
            found = getattr(library, step)(self._handle, found)

    def configuration(self) -> bytes:
        """The value of the object's configuration section, as compiled in."""
        return bytes(self._configuration())

    def set_constants(self, section: str, value: bytes) -> None:
        """Set a section of constants; only before `load`.

        Raises:
            ValueError: its size is not the object's.
        """
        area = self._constants(section)
        if len(area) != len(value):
            raise ValueError(f"{section} of {self.name} has {len(area)} bytes, not {len(value)}")
        ctypes.memmove(area, value, len(value))

    def _configuration(self) -> ctypes.Array[ctypes.c_ubyte]:
        return self._constants(CONFIG_SECTION)

    def _constants(self, section: str) -> ctypes.Array[ctypes.c_ubyte]:
        size = ctypes.c_size_t()
        pointer = next(pointer for name, pointer in self._maps.items() if name.endswith(section))
        address = libbpf.call("bpf_map__initial_value", pointer, ctypes.byref(size), about=section)
        return (ctypes.c_ubyte * size.value).from_address(address)

    def lend(self, fds: Mapping[str, int]) -> None:
        """Use existing maps in place of the object's own of the same names; names it does not have are passed over."""
        for name, fd in fds.items():
            if name in self._maps:
                libbpf.call("bpf_map__reuse_fd", self._maps[name], fd, about=name)

    def set_kind(self, program: str, kind: int, attach: int) -> None:
        """Give a program its type and expected attach type, for sections that libbpf does not know."""
        pointer = self._programs[program]
        libbpf.call("bpf_program__set_type", pointer, kind, about=program)
        libbpf.call("bpf_program__set_expected_attach_type", pointer, attach, about=program)

    def set_target(self, program: str, function: str) -> None:
        """Name the kernel function (or LSM hook) that a traced program belongs to, in place of what its section says."""
        pointer = self._programs[program]
        libbpf.call("bpf_program__set_attach_target", pointer, 0, function.encode(), about=program)

    def skip(self, programs: Iterable[str]) -> None:
        """Leave these programs out of the kernel, and out of what this object has."""
        for program in programs:
            libbpf.call("bpf_program__set_autoload", self._programs.pop(program), False, about=program)

    def load(self) -> None:
        """Verify and load. Raises KernelError with the verifier's last words."""
        libbpf.call("bpf_object__load", self._handle, about=self.name, log=self._last_words)

    def _last_words(self) -> str:
        return self._log.value.decode(errors="replace")[-4000:]

    def program(self, name: str) -> int:
        """Descriptor of a loaded program; valid until `close`."""
        return int(libbpf.call("bpf_program__fd", self._programs[name], about=name))

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the maps that the object declares; sections of data are left out."""
        return tuple(name for name in self._maps if "." not in name)

    def inner_shape(self, name: str) -> Shape | None:
        """From what the inner maps of a map of maps are made; None for a map of another kind. Known until `load`."""
        library = libbpf.library()
        inner = library.bpf_map__inner_map(self._maps[name])
        if not inner:
            return None
        return (
            library.bpf_map__type(inner),
            library.bpf_map__key_size(inner),
            library.bpf_map__value_size(inner),
            library.bpf_map__max_entries(inner),
            library.bpf_map__map_flags(inner),
        )

    @property
    def programs(self) -> tuple[str, ...]:
        """Names of the programs of the object, but for those that were left out."""
        return tuple(self._programs)

    def map(self, name: str) -> Map:
        """A loaded map, on a descriptor of its own that outlives the object."""
        pointer = self._maps[name]
        return Map(
            name,
            os.dup(int(libbpf.call("bpf_map__fd", pointer, about=name))),
        )

    def close(self) -> None:
        """Let go of the object; safe to call twice."""
        if self._handle:
            libbpf.library().bpf_object__close(self._handle)
            self._handle = None
            self._maps.clear()
            self._programs.clear()


@dataclass(frozen=True, slots=True)
class Map:
    """A map by its descriptor; works in any process that was given one, as far as the kernel lets it."""

    name: str
    fd: int

    def set(self, key: bytes, value: bytes) -> None:
        """Write one entry, in one step for every reader. Raises KernelError."""
        libbpf.call("bpf_map_update_elem", self.fd, key, value, libbpf.ANY, about=self.name)

    def set_many(self, keys: bytes, values: bytes, count: int) -> None:
        """Write `count` entries in one call; keys and values stand one behind the other. Raises KernelError."""
        written = ctypes.c_uint32(count)
        libbpf.call("bpf_map_update_batch", self.fd, keys, values, ctypes.byref(written), None, about=self.name)

    def set_fd(self, key: bytes, fd: int) -> None:
        """Put a map into a map of maps; when this returns, no program uses what was there before. Raises KernelError."""
        self.set(key, fd.to_bytes(4, sys.byteorder))

    def get(self, key: bytes, value_bytes: int) -> bytes | None:
        """The value of one entry (of a map of maps: the inner map's number); None when there is none."""
        value = ctypes.create_string_buffer(value_bytes)
        try:
            libbpf.call("bpf_map_lookup_elem", self.fd, key, value, about=self.name)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        return value.raw

    def keys(self, key_bytes: int) -> list[bytes]:
        """All keys now; while others write, one may be missed or seen twice. Raises KernelError."""
        found: list[bytes] = []
        place = ctypes.create_string_buffer(key_bytes)
        while True:
            try:
                libbpf.call("bpf_map_get_next_key", self.fd, found[-1] if found else None, place, about=self.name)
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise
                return found
            found.append(place.raw)

    def is_empty(self, key_bytes: int) -> bool:
        """Whether there is no key now. Raises KernelError."""
        place = ctypes.create_string_buffer(key_bytes)
        try:
            libbpf.call("bpf_map_get_next_key", self.fd, None, place, about=self.name)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return True
        return False

    def delete(self, key: bytes) -> None:
        """Remove one entry; one that is gone already is no error."""
        try:
            libbpf.call("bpf_map_delete_elem", self.fd, key, about=self.name)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


def inner_map(outer: Map, index: int) -> Map:
    """The map that lies in a map of maps; it is the caller's to close. Raises KernelError, ENOENT when there is none."""
    found = ctypes.create_string_buffer(4)
    key = index.to_bytes(4, sys.byteorder)
    libbpf.call("bpf_map_lookup_elem", outer.fd, key, found, about=outer.name)
    fd = libbpf.call("bpf_map_get_fd_by_id", int.from_bytes(found.raw, sys.byteorder), about=outer.name)
    return Map(outer.name, int(fd))


def map_id(fd: int) -> int:
    """The kernel's number for a map."""
    return int(_map_info(fd).id)


def shape(fd: int) -> Shape:
    """Of what kind a map is, and how large."""
    info = _map_info(fd)
    return (info.type, info.key_size, info.value_size, info.max_entries, info.map_flags)


def _map_info(fd: int) -> libbpf.MapInfo:
    info = libbpf.MapInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    libbpf.call("bpf_obj_get_info_by_fd", fd, ctypes.byref(info), ctypes.byref(size), about="map")
    return info


def read_values(fd: int, value_bytes: int, about: str) -> list[bytes]:
    """All values of a hash map. See `read_entries`."""
    batches = _batches(fd, _LONGEST_KEY, value_bytes, about)
    return [value for _, values in batches for value in _pieces(values, value_bytes)]


def read_entries(fd: int, key_bytes: int, value_bytes: int, about: str) -> list[tuple[bytes, bytes]]:
    """All keys and values of a hash map, read in batches. While others write, one may be missed or seen twice.

    Args:
        key_bytes: size of a key.

    Raises:
        KernelError: it cannot be read.
    """
    found: list[tuple[bytes, bytes]] = []
    for keys, values in _batches(fd, key_bytes, value_bytes, about):
        found += zip(_pieces(keys, key_bytes), _pieces(values, value_bytes), strict=True)
    return found


def _pieces(joined: bytes, length: int) -> list[bytes]:
    return [joined[at : at + length] for at in range(0, len(joined), length)]


def _batches(fd: int, key_bytes: int, value_bytes: int, about: str) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values, one behind the other, of each batch; the keys only where `key_bytes` is their size, and not more."""
    size = _BATCH
    place = ctypes.create_string_buffer(_LONGEST_KEY)
    begun = ended = False
    while not ended:
        # Few maps hold much, and memory that nothing is read into takes its time, too.
        keys, values = ctypes.create_string_buffer(size * key_bytes), ctypes.create_string_buffer(size * value_bytes)
        count = ctypes.c_uint32(size)
        arguments = (fd, place if begun else None, place, keys, values, ctypes.byref(count), None)
        try:
            libbpf.call("bpf_map_lookup_batch", *arguments, about=about)
        except KernelError as error:
            if error.errno == errno.ENOSPC and size < _LARGEST_BATCH:  # one bucket holds more
                size *= 2
                continue
            if error.errno != errno.ENOENT:
                raise
            ended = True
        begun = True
        yield ctypes.string_at(keys, count.value * key_bytes), ctypes.string_at(values, count.value * value_bytes)


def attach_cgroup(program: int, cgroup: int, kind: int, about: str) -> None:
    """Attach a program to a cgroup beside whatever is there. It stays until the cgroup goes, whoever of us dies."""
    libbpf.call("bpf_prog_attach", program, cgroup, kind, libbpf.F_ALLOW_MULTI, about=about)


def attached_programs(cgroup: int, kind: int) -> list[int]:
    """Ids of the programs attached to this very cgroup for one attach type."""
    ids = (ctypes.c_uint32 * 64)()
    count = ctypes.c_uint32(len(ids))
    libbpf.call("bpf_prog_query", cgroup, kind, 0, None, ids, ctypes.byref(count), about="cgroup")
    return list(ids[: count.value])


@dataclass(frozen=True, slots=True)
class ProgramFacts:
    """What the kernel says of a loaded program.

    Attributes:
        id: the kernel's number for it.
        runs: how often it ran while somebody had the kernel count that (`counting`).
        recursion_misses: how often a traced program was passed over because it, or its like, was already running.
        verified_insns: how much the verifier had to look at; 0 where the kernel does not tell.
    """

    id: int
    runs: int
    recursion_misses: int
    verified_insns: int


def program_facts(program: int) -> ProgramFacts:
    """Ask the kernel about a program. Raises KernelError."""
    info = libbpf.ProgramInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    libbpf.call("bpf_obj_get_info_by_fd", program, ctypes.byref(info), ctypes.byref(size), about="program")
    return ProgramFacts(info.id, info.run_cnt, info.recursion_misses, info.verified_insns)


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """Have the kernel count how often each program runs. Raises KernelError."""
    fd = libbpf.call("bpf_enable_stats", _STATS_RUN_TIME, about="programs")
    try:
        yield
    finally:
        os.close(fd)


def program_id(program: int) -> int:
    """The kernel's number for a loaded program."""
    return program_facts(program).id


def program_exists(number: int) -> bool:
    """Whether anything still holds the program of this number. Raises KernelError."""
    try:
        os.close(int(libbpf.call("bpf_prog_get_fd_by_id", number, about="program")))
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def pin(fd: int, path: str) -> None:
    """Give a map, program or link a name on a BPF file system, which keeps it when no process does. Raises KernelError."""
    libbpf.call("bpf_obj_pin", fd, os.fsencode(path), about=path)


def pinned(path: str) -> int:
    """Descriptor of what is pinned there. Raises KernelError."""
    return int(libbpf.call("bpf_obj_get", os.fsencode(path), about=path))


def attach_traced(program: int, about: str) -> int:
    """Attach an LSM, modify-return or other traced program to the function it was loaded for; returns the link's descriptor.

    Raises:
        KernelError: the kernel refused. Success does not mean that the program is ever called: only a canary tells.
    """
    return int(libbpf.call("bpf_raw_tracepoint_open", None, program, about=about))


def attach_raw_tracepoint(name: str, program: int) -> int:
    """Attach a program to a raw tracepoint; returns the link's descriptor, which holds the attachment."""
    return int(libbpf.call("bpf_raw_tracepoint_open", name.encode(), program, about=name))


def attach_event(event: int, program: int, about: str) -> int:
    """Attach a program to an open performance event, which the link then holds; returns the link's descriptor."""
    return int(libbpf.call("bpf_link_create", program, event, _PERF_EVENT, None, about=about))
