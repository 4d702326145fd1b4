"""From needs to rules that a person would write: subtrees and globs in place of single names, each with its evidence.

Pure. Proposes nothing that a rule refuses on purpose, and never the home, the workspace's parents or a system root as a whole:
those come as single files.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mcpguard.model.paths import is_below
from mcpguard.profile.amend import Addition
from mcpguard.session.needs import Need

# With this many different names in one folder, the folder is what is meant.
MANY = 4
# Folders of the home that hold one folder for each program.
_SHELVES = (".cache", ".config", ".local/share", ".local/state", ".local/lib", "Library/Caches")
# A uuid, a long number in hex with a digit, what tempfile and mkstemp add, a number.
_RANDOM = re.compile(
    r"(?:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    r"|(?<![0-9A-Za-z])(?=[0-9a-f]*[0-9])[0-9a-f]{6,}(?![0-9A-Za-z])"
    r"|(?<=tmp)[a-z0-9_]{8}(?![0-9A-Za-z_])"
    r"|(?<=[.-])(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{6,10}(?![0-9A-Za-z])"
    r"|[0-9]{3,})"
)
_PLAIN = re.compile(r"[*?\[\\{}]")


@dataclass(slots=True)
class Proposal:
    """A rule to add.

    Attributes:
        key: `files.write`, `network.allow`, ...
        value: the pattern or target as it is written.
        evidence: program -> how often.
        objects: what it was made from.
    """

    key: str
    value: str
    evidence: dict[str, int] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)

    def addition(self) -> Addition:
        section, key = self.key.split(".")
        return Addition(section, key, self.value, self.comment)

    @property
    def comment(self) -> str:
        """Who asked for it, how often, and for how many names."""
        most = sorted(self.evidence.items(), key=lambda one: (-one[1], one[0]))
        words = ", ".join(f"{_word(program)} {times}x" for program, times in most[:4])
        more = f" and {len(most) - 4} more programs" if len(most) > 4 else ""
        names = f"; {len(self.objects)} names" if len(self.objects) > 1 else ""
        return f"{words}{more}{names}{self._warning}"

    @property
    def _warning(self) -> str:
        """What a person should think about before it is installed."""
        in_home = self.key == "files.write" and self.value.startswith("~/") and "/" not in self.value[2:]
        return "; LOOK: directly in the home, where start-up files are" if in_home else ""


def propose(needs: Iterable[Need], variables: Mapping[str, str]) -> list[Proposal]:
    """Rules that would have allowed all of these but what a rule refused.

    Args:
        variables: absolute paths of `home`, `workspace` and `tmp`.
    """
    found: dict[tuple[str, str], Proposal] = {}
    wanted = [need for need in needs if need.refused is None]
    files: dict[str, list[Need]] = defaultdict(list)
    for need in wanted:
        if need.kind in ("file", "exec"):
            files[need.access].append(need)
        else:
            _note(found, *_other(need), need)
    written: list[str] = []
    for access in ("write", "read", "execute"):
        for need in files[access]:
            value = _pattern(need.object, files[access], access, variables)
            if access == "read" and _covered(value, written):
                continue
            if access == "write":
                written.append(value.rstrip("/"))
            _note(found, f"files.{access}", value, need)
            if access == "execute" and not _covered(value, written):
                _note(found, "files.read", value, need)
    order = ("files.read", "files.write", "files.execute", "network.allow", "network.listen", "sockets.allow")
    return sorted(_without_covered(found.values()), key=lambda one: (order.index(one.key), one.value))


def _note(found: dict[tuple[str, str], Proposal], key: str, value: str, need: Need) -> None:
    proposal = found.setdefault((key, value), Proposal(key, value))
    proposal.objects.add(need.object)
    for program, times in need.programs.items():
        proposal.evidence[program] = proposal.evidence.get(program, 0) + times


def _other(need: Need) -> tuple[str, str]:
    if need.kind == "unix":
        return "sockets.allow", need.object if need.object.startswith("@") else _quoted(need.object)
    host, _, port = need.object.rpartition(":")
    number, slash, protocol = port.partition("/")
    local = host in ("127.0.0.1", "[::1]", "localhost") or host.startswith("127.")
    target = ("localhost" if local else host) + (f":{number}" if number else "") + slash + protocol
    return f"network.{'allow' if need.access == 'connect' else 'listen'}", target


def _pattern(path: str, others: Sequence[Need], access: str, variables: Mapping[str, str]) -> str:
    home = variables["home"]
    base = max((place for place in variables.values() if is_below(path, place) and path != place), key=len, default="")
    for name in ("workspace", "tmp"):
        if base and base == variables[name]:
            return f"{{{name}}}/" + _globbed(path[len(base) + 1 :])
    if base == home != "/":
        rest = path[len(home) + 1 :]
        below = any(is_below(one.object, path) and one.object != path for one in others)
        folder = _own_folder(f"{rest}/." if below else rest)
        if folder is not None:
            return f"~/{_quoted(folder)}" + ("/" if access == "write" else "")
        shared = _shared_folder(path, others, home)
        return "~/" + (_quoted(shared[len(home) + 1 :]) if shared else _globbed(rest))
    shared = _shared_folder(path, others, "/")
    return _quoted(shared) if shared else _globbed(path)


def _own_folder(rest: str) -> str | None:
    """The folder of one program in the home: `.cache/NAME`, `.NAME`; None where the name is a file or a person's own."""
    for shelf in _SHELVES:
        if rest.startswith(shelf + "/"):
            names = rest[len(shelf) + 1 :].split("/")
            return f"{shelf}/{names[0]}" if len(names) > 1 else None
    first, slash, below = rest.partition("/")
    return first if slash and below and first.startswith(".") and first not in (".local", ".ssh") else None


def _shared_folder(path: str, others: Sequence[Need], root: str) -> str | None:
    """The folder of a path when many names of it were asked for; never the root itself or what lies directly below `/`."""
    folder = path.rpartition("/")[0]
    if folder in ("", root) or folder.count("/") < 2:
        return None
    return folder if sum(one.object.rpartition("/")[0] == folder for one in others) >= MANY else None


def _globbed(path: str) -> str:
    """Random parts of names become `*`."""
    names = []
    for name in path.split("/"):
        parts = _RANDOM.split(name)
        names.append("*".join(map(_quoted, parts)) if len(parts) > 1 and any(parts) else _quoted(name))
    return "/".join(names)


def _quoted(path: str) -> str:
    return _PLAIN.sub(lambda found: f"[{found[0]}]", path)


def _covered(value: str, patterns: Sequence[str]) -> bool:
    return any(is_below(value.rstrip("/"), pattern) for pattern in patterns)


def _without_covered(proposals: Iterable[Proposal]) -> list[Proposal]:
    """Without rules that another one of the same key holds already; its evidence goes there."""
    kept: list[Proposal] = []
    for proposal in sorted(proposals, key=lambda one: (one.key, len(one.value))):
        above = next(
            (
                one
                for one in kept
                if one.key == proposal.key
                and one.key.startswith("files.")
                and is_below(proposal.value.rstrip("/"), one.value.rstrip("/"))
            ),
            None,
        )
        if above is None:
            kept.append(proposal)
            continue
        above.objects |= proposal.objects
        for program, times in proposal.evidence.items():
            above.evidence[program] = above.evidence.get(program, 0) + times
    return kept


def _word(program: str) -> str:
    """A program's name in a comment: chosen by whoever is guarded."""
    return "".join(character if character.isprintable() else "?" for character in program)[:32]
