"""Of a record only who did it: what a launch asks of a hundred records, for which it would take the rest of each apart."""

from __future__ import annotations

import struct

from mcpguard.wire import _abi

_KINDS = (
    *(_abi.MG_RECORD_FORK, _abi.MG_RECORD_EXIT, _abi.MG_RECORD_EXEC),
    *(_abi.MG_RECORD_OPEN, _abi.MG_RECORD_PATH_CALL, _abi.MG_RECORD_CALL, _abi.MG_RECORD_NET),
    *(_abi.MG_RECORD_UNIX, _abi.MG_RECORD_FILE, _abi.MG_RECORD_HOST),
)


def author(sample: bytes) -> int:
    """The process of one sample of a ring.

    Raises:
        ValueError: the sample does not follow the contract; the rings and this package do not belong together.
    """
    try:
        _when, kind, _lost, pid, *_rest = _abi.MG_HEAD.unpack_from(sample)
    except struct.error as error:
        raise ValueError(f"not a record of this version: {error!r}") from None
    if kind not in _KINDS:
        raise ValueError(f"not a record of this version: its kind is {kind}")
    return int(pid)
