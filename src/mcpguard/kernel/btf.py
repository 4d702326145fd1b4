"""What the kernel says about its own functions: does one exist, and with how many parameters. Costs tens of milliseconds."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

from mcpguard.errors import KernelError
from mcpguard.kernel import libbpf
from mcpguard.model.values import dataclass

_KIND_FUNCTION = 12


def function_parameters(names: Iterable[str]) -> dict[str, int]:
    """How many parameters each of these kernel functions has; those that this kernel does not describe are left out.

    Raises:
        KernelError: the kernel does not describe its types at all.
    """
    return {name: found.parameters for name, found in functions(names).items()}


@dataclass(frozen=True, slots=True)
class Function:
    """What the kernel says about one of its functions.

    Attributes:
        kind: the kernel's number for functions that are described alike, down to the names of their parameters.
    """

    kind: int
    parameters: int


def functions(names: Iterable[str]) -> dict[str, Function]:
    """These functions of the kernel, as far as it describes them.

    Raises:
        KernelError: the kernel does not describe its types at all.
    """
    library = libbpf.library()
    types = libbpf.call("btf__load_vmlinux_btf", about="kernel types")
    found = {}
    try:
        for name in names:
            number = library.btf__find_by_name_kind(types, name.encode(), _KIND_FUNCTION)
            if number > 0:
                function = _type(types, number)
                found[name] = Function(function.type, _type(types, function.type).info & 0xFFFF)
    finally:
        library.btf__free(types)
    return found


def _type(types: int, number: int) -> libbpf.BtfType:
    address = libbpf.library().btf__type_by_id(types, number)
    if not address:
        raise KernelError("btf__type_by_id", 22, do="run `mcpguard doctor`")
    return ctypes.cast(address, ctypes.POINTER(libbpf.BtfType)).contents
