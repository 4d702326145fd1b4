"""Which sockets of this host are looked for, whatever an agent binds and links."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from mcpguard.session.sockets import bound_paths

HEAD = "Num       RefCount Protocol Flags    Type St Inode Path\n"
LINE = "0000000000000000: 00000002 00000000 00010000 0001 01 1234 {}\n"


def test_a_socket_is_named_where_it_is_and_an_endless_chain_of_links_stops_nothing(tmp_path: Path) -> None:
    place = Path(os.path.realpath(tmp_path))
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place / "real/socket"))
        (place / "l0").symlink_to("real/socket")
        for number in range(1, 1_200):
            (place / f"l{number}").symlink_to(f"l{number - 1}")
        (place / "loop").symlink_to("loop")
        names = [place / name for name in ("l1199", "loop", "gone", "link/socket")]
        table = place / "unix"
        table.write_text(HEAD + "".join(LINE.format(name) for name in (*names, "@abstract")))
        assert bound_paths(str(table)) == [str(place / "real/socket")]
