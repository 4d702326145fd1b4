"""Acts that try to use a terminal that somebody outside opened, and honest ones that make terminals of their own."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct

from acts import act
from acts_file import checked, libc
from acts_names import MS_BIND, MS_REC, ask, do_mount, enter_own_namespaces

QUIETLY = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK
TIOCGPTN, TIOCGPTPEER = 0x80045430, 0x5441


def typed_on(fd: int) -> str:
    """Write to a terminal, then read what its user typed."""
    os.write(fd, b"injected\r\n")
    return os.read(fd, 4096).decode()


def opened_outside(door: str) -> dict[str, int]:
    """Have a terminal opened outside, now; returns its number, and who has it under which descriptor."""
    ask(door, "open a terminal")
    with open("terminal.json") as told:
        found: dict[str, int] = json.load(told)
    return found


@act
def use_terminal(door: str, path: str) -> str:
    """Use it by a path in which its number, its holder and the holder's descriptor stand."""
    fd = os.open(path.format(**opened_outside(door)), QUIETLY)
    return typed_on(fd)


@act
def use_sent_terminal(door: str) -> str:
    """Use it by a descriptor that was sent."""
    opened_outside(door)
    found = ask(door, "send the terminal")
    if not found:
        raise OSError(13, "no descriptor arrived")
    os.set_blocking(found[0], False)
    return typed_on(found[0])


@act
def dig_for_terminal(door: str, folder: str) -> str:
    """Look for it with the rights that a user namespace of one's own gives: below what is mounted, and in a new instance."""
    index = opened_outside(door)["index"]
    enter_own_namespaces()
    place = f"{folder}/dev"
    os.makedirs(place, exist_ok=True)
    ways = (
        ("/dev/pts", lambda: None),
        ("/dev/pts", lambda: checked(libc.umount2(b"/dev/pts", 2), "umount")),
        (f"{place}/pts", lambda: do_mount("/dev", place, None, MS_BIND | MS_REC)),
        (f"{place}/pts", lambda: checked(libc.umount2(f"{place}/pts".encode(), 2), "umount")),
        (f"{place}/pts", lambda: do_mount("devpts", f"{place}/pts", "devpts")),
        ("/dev/pts", lambda: do_mount("devpts", "/dev/pts", "devpts")),
    )
    refusals = []
    for found, make_way in ways:
        try:
            make_way()
        except OSError as refused:
            refusals.append(str(refused))
        try:
            return typed_on(os.open(f"{found}/{index}", QUIETLY))
        except OSError as refused:
            refusals.append(str(refused))
    raise OSError(13, "; ".join(refusals))


@act
def make_terminal_node(door: str, folder: str) -> None:
    """Make a node with its number."""
    index = opened_outside(door)["index"]
    os.mknod(f"{folder}/node", 0o020600, os.makedev(136, index))
    os.unlink(f"{folder}/node")


@act
def own_terminal() -> str:
    """Make a pair and use it, by its name and by the kernel's own way to the other end."""
    master, slave = pty.openpty()
    (number,) = struct.unpack("=i", fcntl.ioctl(master, TIOCGPTN, bytes(4)))
    name = os.ttyname(slave)
    assert name == f"/dev/pts/{number}", name
    peer = fcntl.ioctl(master, TIOCGPTPEER, QUIETLY)
    again = os.open(name, QUIETLY)
    assert os.path.sameopenfile(peer, again)
    os.write(again, b"from the other end\n")
    assert os.fstat(slave).st_uid == os.getuid()
    return os.read(master, 100).decode()


@act
def program_on_own_terminal() -> str:
    """A program on a new controlling terminal sees its name, its size, and what is typed."""
    child, master = pty.fork()
    if child == 0:
        # The size is asked for when the line is there: that is written after the size.
        script = 'test "$(readlink /proc/self/fd/0)" = "$(tty)" && read line </dev/tty && stty size && echo got-$line'
        os.execvp("sh", ["sh", "-c", script])
    fcntl.ioctl(master, 0x5414, struct.pack("HHHH", 33, 77, 0, 0))
    os.write(master, b"typed\n")
    seen = b""
    while b"got-typed" not in seen:
        seen += os.read(master, 1000)
    assert b"33 77" in seen, seen
    os.waitpid(child, 0)
    return seen.decode()


@act
def terminals_in_sight() -> str:
    """What stands in the folder of terminals."""
    return " ".join(sorted(os.listdir("/dev/pts")))
