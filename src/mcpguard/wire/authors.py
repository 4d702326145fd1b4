"""Of a record only who did it: what a launch asks of a hundred records, for which it would take the rest of each apart."""

from __future__ import annotations

import struct

from mcpguard.wire import _abi

_SERIES = struct.Struct("=Q")
_NEVER_SUMMED = (_abi.MG_RECORD_FORK, _abi.MG_RECORD_EXIT, _abi.MG_RECORD_EXEC)
_SUMMED = (
    *(_abi.MG_RECORD_OPEN, _abi.MG_RECORD_PATH_CALL, _abi.MG_RECORD_CALL, _abi.MG_RECORD_NET),
    *(_abi.MG_RECORD_UNIX, _abi.MG_RECORD_FILE, _abi.MG_RECORD_HOST),
)


def author(sample: bytes) -> tuple[int, int]:
    """The process of one sample of a ring, and the aggregate that it is of; 0: of none.

    Raises:
        ValueError: the sample does not follow the contract; the rings and this package do not belong together.
    """
    try:
        _when, kind, _lost, pid, *_rest = _abi.MG_HEAD.unpack_from(sample)
        if kind in _NEVER_SUMMED:
            return pid, 0
        if kind in _SUMMED:
            return pid, _SERIES.unpack_from(sample, _abi.MG_HEAD.size)[0]
    except struct.error as error:
        raise ValueError(f"not a record of this version: {error!r}") from None
    raise ValueError(f"not a record of this version: its kind is {kind}")
