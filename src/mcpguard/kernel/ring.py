"""Read a BPF ring buffer without libbpf and without privilege: two mappings of a descriptor that was handed over.

The kernel writes records and a producer position, we write a consumer position. Records are taken in batches and copied
out, and the consumer position moves once per batch, so no call into Python happens per record.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import threading

from mcpguard.errors import KernelError

_HEADER = 8
_BUSY = 1 << 31
_DISCARDED = 1 << 30
_LENGTH = struct.Struct("=I")


def _mapped(fd: int, offset: int, length: int, access: int) -> mmap.mmap:
    try:
        return mmap.mmap(fd, length, mmap.MAP_SHARED, access, offset=offset)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None) or 22
        raise KernelError("mmap(ring buffer)", number, do="run `mcpguard doctor`") from None


class Ring:
    """One reader of one ring; the only one, as the kernel keeps one consumer position."""

    def __init__(self, fd: int, size: int, *, beginning: int = 0) -> None:
        """Map the ring.

        Args:
            fd: the map's descriptor; it stays the caller's and can be polled: readable means records wait.
            size: bytes of the data area, a power of two.
            beginning: map only so many bytes until more was written: each page takes the kernel a moment. `drain` raises
                KernelError when the rest cannot be had then. 0: all.

        Raises:
            KernelError: the descriptor is not a ring buffer of that size.
        """
        self.fd = fd
        self._mask = size - 1
        # The data area is there twice in a row, so a record that wraps can be read in one piece.
        self._whole = 2 * size
        self._consumer_page = _mapped(fd, 0, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE)
        self._map(min(beginning, size) or self._whole)
        self._consumer = ctypes.c_uint64.from_buffer(self._consumer_page)
        self._fence = threading.Lock()

    def _map(self, length: int) -> None:
        """Map the producer position and so much of the data."""
        page = mmap.PAGESIZE
        self._pages = _mapped(self.fd, page, page + length, mmap.PROT_READ)
        self._data = memoryview(self._pages)[page:]
        self._length = length

    def fileno(self) -> int:
        """The map's descriptor, to wait on."""
        return self.fd

    def drain(self, limit_bytes: int = 1 << 20) -> list[bytes]:
        """Take the records that are complete, oldest first, until about `limit_bytes` were taken.

        An empty list means that nothing is ready. A record that is being written ends the batch.
        """
        start = position = self._consumer.value
        produced = self._in_reach()
        # Whatever was written before the producer position moved must be visible below; taking a lock is the barrier.
        with self._fence:
            pass
        records: list[bytes] = []
        while position < produced and position - start < limit_bytes:
            at = position & self._mask
            (word,) = _LENGTH.unpack_from(self._data, at)
            if word & _BUSY:
                break
            length = word & ~_DISCARDED
            if not word & _DISCARDED:
                records.append(bytes(self._data[at + _HEADER : at + _HEADER + length]))
            position += (length + _HEADER + 7) & ~7
        if position != start:
            self._consumer.value = position
        return records

    def unread(self) -> int:
        """How many complete records wait to be taken; 1 when they cannot be looked at."""
        try:
            position, produced, waiting = self._consumer.value, self._in_reach(), 0
        except KernelError:
            return 1
        while position < produced:
            (word,) = _LENGTH.unpack_from(self._data, position & self._mask)
            if word & _BUSY:
                break
            waiting += not word & _DISCARDED
            position += ((word & ~_DISCARDED) + _HEADER + 7) & ~7
        return waiting

    def filled(self) -> float:
        """Which part of the data area holds records that were not taken yet."""
        return (self._produced() - int(self._consumer.value)) / (self._mask + 1)

    def _in_reach(self) -> int:
        """The producer position, once all before it can be read."""
        produced = self._produced()
        if produced > self._length < self._whole:
            pages, data = self._pages, self._data
            self._map(self._whole)
            data.release()
            pages.close()
        return produced

    def _produced(self) -> int:
        return int(struct.unpack_from("=Q", self._pages, 0)[0])

    def close(self) -> None:
        """Unmap; the descriptor stays open."""
        del self._consumer
        self._data.release()
        self._pages.close()
        self._consumer_page.close()


class Counters:
    """What a session shares with its programs, mapped; no system call per reading."""

    def __init__(self, fd: int, size: int) -> None:
        """Map `size` bytes of an array map with one value. Raises KernelError."""
        try:
            self._page = mmap.mmap(fd, max(size, mmap.PAGESIZE), mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            raise KernelError("mmap(counters)", error.errno or 0, do="run `mcpguard doctor`") from None
        self._size = size

    def read(self) -> bytes:
        """The value as it is now."""
        return self._page[: self._size]

    def write(self, at: int, value: int) -> None:
        """Put a number of 64 bits there, for the programs to read.

        Args:
            at: bytes from the beginning, a multiple of 8.
        """
        memoryview(self._page).cast("Q")[at // 8] = value

    def close(self) -> None:
        """Unmap."""
        self._page.close()
