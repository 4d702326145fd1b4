"""Maps of hashes are read whole, however much one call to the kernel reads."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mcpguard.errors import KernelError
from mcpguard.kernel import bpf, libbpf

pytestmark = pytest.mark.kernel

ENTRIES = 3000


@pytest.fixture
def table() -> Iterator[bpf.Map]:
    """Each key with its own number, doubled, as value."""
    made = bpf.Map("table", bpf.create_map(libbpf.MAP_TYPE_HASH, "table", 4, 8, 4096))
    for number in range(ENTRIES):
        made.set(number.to_bytes(4, "little"), (2 * number).to_bytes(8, "little"))
    yield made
    made.close()


def numbers(found: list[bytes]) -> list[int]:
    return sorted(int.from_bytes(one, "little") for one in found)


# One is less than many buckets hold, so that the kernel refuses it at first.
@pytest.mark.parametrize("batch", [1, 7, 128, 1 << 14])
def test_everything_is_read_however_much_is_read_at_once(
    table: bpf.Map, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(bpf, "_BATCH", batch)
    assert numbers(bpf.read_values(table.fd, 8, "table")) == list(range(0, 2 * ENTRIES, 2))
    entries = bpf.read_entries(table.fd, 4, 8, "table")
    assert numbers([key for key, _ in entries]) == list(range(ENTRIES))
    assert all(int.from_bytes(value, "little") == 2 * int.from_bytes(key, "little") for key, value in entries)


def test_a_map_with_nothing_in_it_has_no_values() -> None:
    fd = bpf.create_map(libbpf.MAP_TYPE_HASH, "empty", 4, 8, 4096)
    assert bpf.read_values(fd, 8, "empty") == []
    os.close(fd)


def test_one_that_cannot_be_read_is_said_to_be(table: bpf.Map) -> None:
    read, write = os.pipe()
    with pytest.raises(KernelError, match="pipe"):
        bpf.read_values(read, 8, "pipe")
    os.close(read)
    os.close(write)
