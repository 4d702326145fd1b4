"""A thin skin over libbpf: only the calls that mcpguard makes, as they are, with errno as an exception.

It prefers the libraries that came in the package, then the system's. It does nothing by itself and knows nothing about our
programs; `kernel.bpf` does.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable

from mcpguard.errors import HostError, KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BUNDLED = f"{os.path.dirname(os.path.dirname(os.path.realpath(__file__)))}/_lib"
# libz is everywhere; libelf must be in the process before libbpf asks for it by name.
LIBRARIES = ("libelf.so.1", "libbpf.so.1")

MAP_TYPE_HASH = 1
MAP_TYPE_ARRAY = 2
F_ALLOW_MULTI = 2
ANY = 0

_pointer, _int, _size, _text = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p
_number = ctypes.c_uint32
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "libbpf_set_print": (_pointer, (_pointer,)),
    "bpf_object__open_mem": (_pointer, (_text, _size, _pointer)),
    "bpf_object__load": (_int, (_pointer,)),
    "bpf_object__close": (None, (_pointer,)),
    "bpf_object__next_map": (_pointer, (_pointer, _pointer)),
    "bpf_object__next_program": (_pointer, (_pointer, _pointer)),
    "bpf_map__name": (_text, (_pointer,)),
    "bpf_map__fd": (_int, (_pointer,)),
    "bpf_map__reuse_fd": (_int, (_pointer, _int)),
    "bpf_map__initial_value": (_pointer, (_pointer, _pointer)),
    "bpf_map__inner_map": (_pointer, (_pointer,)),
    "bpf_map__type": (_number, (_pointer,)),
    "bpf_map__key_size": (_number, (_pointer,)),
    "bpf_map__value_size": (_number, (_pointer,)),
    "bpf_map__max_entries": (_number, (_pointer,)),
    "bpf_map__map_flags": (_number, (_pointer,)),
    "bpf_map__set_max_entries": (_int, (_pointer, _number)),
    "bpf_program__name": (_text, (_pointer,)),
    "bpf_program__fd": (_int, (_pointer,)),
    "bpf_program__set_autoload": (_int, (_pointer, ctypes.c_bool)),
    "bpf_program__set_type": (_int, (_pointer, _int)),
    "bpf_program__set_expected_attach_type": (_int, (_pointer, _int)),
    "bpf_program__set_attach_target": (_int, (_pointer, _int, _text)),
    "bpf_enable_stats": (_int, (ctypes.c_uint,)),
    "bpf_prog_attach": (_int, (_int, _int, _int, ctypes.c_uint)),
    "bpf_prog_query": (_int, (_int, _int, ctypes.c_uint32, _pointer, _pointer, _pointer)),
    "bpf_obj_get_info_by_fd": (_int, (_int, _pointer, _pointer)),
    "bpf_raw_tracepoint_open": (_int, (_text, _int)),
    "bpf_link_create": (_int, (_int, _int, _int, _pointer)),
    "bpf_map_create": (_int, (_int, _text, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, _pointer)),
    "bpf_map_update_elem": (_int, (_int, _text, _text, ctypes.c_uint64)),
    "bpf_map_update_batch": (_int, (_int, _text, _text, _pointer, _pointer)),
    "bpf_map_delete_elem": (_int, (_int, _text)),
    "bpf_map_lookup_elem": (_int, (_int, _text, _pointer)),
    "bpf_map_get_next_key": (_int, (_int, _text, _pointer)),
    "bpf_prog_get_fd_by_id": (_int, (ctypes.c_uint32,)),
    "bpf_map_get_fd_by_id": (_int, (ctypes.c_uint32,)),
    "bpf_obj_pin": (_int, (_int, _text)),
    "bpf_obj_get": (_int, (_text,)),
    "btf__load_vmlinux_btf": (_pointer, ()),
    "btf__find_by_name_kind": (_int, (_pointer, _text, ctypes.c_uint32)),
    "btf__type_by_id": (_pointer, (_pointer, ctypes.c_uint32)),
    "btf__free": (None, (_pointer,)),
    "bpf_map_lookup_batch": (_int, (_int, _pointer, _pointer, _pointer, _pointer, _pointer, _pointer)),
}


class OpenOptions(ctypes.Structure):
    """bpf_object_open_opts of libbpf 1.x, as far as we fill it."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("object_name", ctypes.c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", ctypes.c_char_p),
        ("unused", ctypes.c_uint32),
        ("kconfig", ctypes.c_char_p),
        ("btf_custom_path", ctypes.c_char_p),
        ("kernel_log_buf", ctypes.c_void_p),
        ("kernel_log_size", ctypes.c_size_t),
        ("kernel_log_level", ctypes.c_uint32),
    )


class ProgramInfo(ctypes.Structure):
    """bpf_prog_info as far as we read it; the gaps are addresses and counts of what we do not ask for."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("_gap", ctypes.c_uint8 * 192),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_insns", ctypes.c_uint32),
        ("_rest", ctypes.c_uint8 * 12),
    )


class MapInfo(ctypes.Structure):
    """bpf_map_info as far as we read it."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    )


class BtfType(ctypes.Structure):
    """btf_type: `info` holds the kind and how many members follow, `type` another type's number or a size."""

    _fields_ = (("name_off", ctypes.c_uint32), ("info", ctypes.c_uint32), ("type", ctypes.c_uint32))


class MapCreateOptions(ctypes.Structure):
    """bpf_map_create_opts of libbpf 1.x, as far as we fill it."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """libbpf, loaded once and told to keep quiet; what it would print comes back as errno and verifier log.

    Raises:
        HostError: neither the package nor the system has it.
    """
    found = None
    for name in LIBRARIES:
        bundled = f"{BUNDLED}/{name}"
        try:
            found = ctypes.CDLL(bundled if os.path.exists(bundled) else name, mode=os.RTLD_GLOBAL, use_errno=True)
        except OSError as error:
            raise HostError(
                f"{name} cannot be loaded",
                why=str(error),
                do="reinstall mcpguard, or install libbpf (Debian and Ubuntu: apt-get install libbpf1)",
                code="host.no-libbpf",
            ) from None
    if found is None:
        raise HostError("libbpf is not named", why="no library listed", do="reinstall mcpguard", code="host.no-libbpf")
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    found.libbpf_set_print(None)
    return found


def call(name: str, *arguments: object, about: str, log: Callable[[], str] = str) -> Any:
    """Call libbpf and give back what it returns.

    Args:
        about: the object of the call, for the error text.
        log: gives the verifier's words when the call was refused.

    Raises:
        KernelError: a negative result, or a null pointer with errno set.
    """
    ctypes.set_errno(0)
    function = getattr(library(), name)
    result = function(*arguments)
    failed = -result if isinstance(result, int) and result < 0 and function.restype is _int else 0
    if function.restype is _pointer and not result:
        failed = ctypes.get_errno()
    if failed:
        raise KernelError(
            f"{name}({about})",
            failed,
            do="run `mcpguard doctor` to see what this kernel accepts",
            log=log(),
        )
    return result
