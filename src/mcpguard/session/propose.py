"""From needs to rules that a person would write: subtrees and globs in place of single names, each with its evidence.

Pure. Proposes nothing that a rule refuses on purpose, and never the home, the workspace's parents or a system root as a whole:
those come as single files. Names were chosen by whoever was guarded: each means itself, whatever characters are in it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mcpguard.model.paths import is_below
from mcpguard.policy.patterns import quote
from mcpguard.profile.amend import Addition
from mcpguard.session.needs import CACHES, SHELVES, Need, inexact

# With this many different names in one folder, the folder is what is meant.
MANY = 4
# A program's own folder is one in which it asked for more than one name; that of a cache is one anyway.
_SEVERAL = 2
# Folders that hold what belongs to many: a folder directly in one of these is never meant as a whole.
_ROOTS = frozenset(("/var", "/home", "/usr", "/run", "/mnt", "/media", "/proc", "/sys", "/dev", "/etc", "/opt"))
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_HEX = r"(?<![0-9A-Za-z])(?=[0-9a-f]*[0-9])(?=[0-9]*[a-f])[0-9a-f]{8,}(?![0-9A-Za-z])"
# What tempfile and mkstemp add.
_TEMPORARY = r"(?<=tmp)[a-z0-9_]{8}(?![0-9A-Za-z_])"
_MIXED = r"(?<=[.-])(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{6,10}(?![0-9A-Za-z])"
_RANDOM = re.compile(f"(?:{_UUID}|{_HEX}|{_TEMPORARY})")
# Numbers and short words are random only where everything is temporary, or the name says so.
_SHORT_LIVED = re.compile(f"(?:{_UUID}|{_HEX}|{_TEMPORARY}|{_MIXED}|[0-9]{{3,}})")
_SAYS_SO = re.compile(r"tmp|temp|lock|pid|sock|swp", re.IGNORECASE)
# So much of a name must be the same each time, or the glob would be about anybody's files.
_FIXED = 3


@dataclass(slots=True)
class Proposal:
    """A rule to add.

    Attributes:
        key: `files.write`, `network.allow`, ...
        value: the pattern or target as it is written.
        evidence: program -> how often.
        objects: what it was made from.
        reason: what sort of rule this is.
    """

    key: str
    value: str
    reason: str = ""
    evidence: dict[str, int] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)

    def addition(self) -> Addition:
        section, key = self.key.split(".")
        return Addition(section, key, self.value, self.comment)

    @property
    def comment(self) -> str:
        """Who asked for it, how often, and for how many names."""
        names = f"; {len(self.objects)} names" if len(self.objects) > 1 else ""
        return f"{programs(self.evidence)}{names}; {self.reason}{self._warning}"

    @property
    def _warning(self) -> str:
        """What a person should think about before it is installed."""
        if self.key != "files.write":
            return ""
        if self.value.startswith("~/") and "/" not in self.value[2:]:
            return "; LOOK: directly in the home, where start-up files are"
        return "; LOOK: everything below it could be changed" if self.reason == CROWD else ""


OWN, CROWD, GLOB, SINGLE = "a program's own folder", "many names in one folder", "a name with a random part", "one name"
PROGRAM, HOST, LOCAL, ADDRESS = "a program", "a host", "a service on this machine", "an address without a known name"
LISTENS, SOCKET = "an own address", "a socket"
_ORDER = ("files.read", "files.write", "files.execute", "network.allow", "network.listen", "sockets.allow")


def propose(
    needs: Iterable[Need], variables: Mapping[str, str], *, widen: bool = True, apart: Collection[str] = ()
) -> list[Proposal]:
    """Rules that would have allowed all of these but what a rule refused, and names that no rule can mean exactly.

    Args:
        variables: absolute paths of `home`, `workspace` and `tmp`.
        widen: a folder may stand for what is in it; False where nothing denies what must stay closed in it.
        apart: objects that no folder may be proposed above.
    """
    found: dict[tuple[str, str], Proposal] = {}
    files: dict[str, list[Need]] = defaultdict(list)
    for need in needs:
        if need.refused is not None or inexact(need.kind, need.object):
            continue
        if need.kind in ("file", "exec"):
            files[need.access].append(need)
        else:
            _note(found, *_other(need), need)
    names = _Names(files, variables, widen=widen, apart=apart)
    written: set[str] = set()
    for access in ("write", "read", "execute"):
        for need in files[access]:
            value, reason = names.pattern(need.object, access)
            if access == "read" and _covered(value, written):
                continue
            if access == "write":
                written.add(value.rstrip("/"))
            if access == "execute":
                reason = PROGRAM
            _note(found, f"files.{access}", value, reason, need)
            if access == "execute" and not _covered(value, written):
                _note(found, "files.read", value, reason, need)
    return sorted(_without_covered(found.values()), key=lambda one: (_ORDER.index(one.key), one.value))


def _note(found: dict[tuple[str, str], Proposal], key: str, value: str, reason: str, need: Need) -> None:
    proposal = found.setdefault((key, value), Proposal(key, value, reason))
    proposal.objects.add(need.object)
    for program, times in need.programs.items():
        proposal.evidence[program] = proposal.evidence.get(program, 0) + times


def _other(need: Need) -> tuple[str, str, str]:
    if need.kind == "unix":
        return "sockets.allow", need.object if need.object.startswith("@") else quote(need.object), SOCKET
    host, _, port = need.object.rpartition(":")
    number, slash, protocol = port.partition("/")
    local = host in ("127.0.0.1", "[::1]", "localhost") or host.startswith("127.")
    target = ("localhost" if local else host) + (f":{number}" if number else "") + slash + protocol
    if need.access != "connect":
        return "network.listen", target, LISTENS
    named = any(character.isalpha() for character in host) and not host.startswith("[")
    return "network.allow", target, LOCAL if local else HOST if named else ADDRESS


class _Names:
    """Patterns for paths, chosen by what else was asked for."""

    def __init__(
        self,
        files: Mapping[str, Iterable[Need]],
        variables: Mapping[str, str],
        *,
        widen: bool,
        apart: Collection[str],
    ) -> None:
        self._variables = variables
        self._widen = widen
        self._closed = {folder for path in apart for folder in _folders(path)}
        self._in_folder: dict[str, Counter[str]] = {}
        self._above: set[str] = set()
        inside: dict[str, set[str]] = defaultdict(set)
        home = variables["home"].rstrip("/")
        for access, asked in files.items():
            paths = {need.object for need in asked}
            self._in_folder[access] = Counter(path.rpartition("/")[0] for path in paths)
            self._above.update(folder for path in paths for folder in _folders(path))
            self._above.update(need.object for need in asked if need.made)
            for path in paths:
                if is_below(path, home) and (own := _own_folder(path[len(home) + 1 :] + "/.")):
                    inside[own].add(path)
        self._own = {own for own, paths in inside.items() if len(paths) >= _SEVERAL or own.startswith(CACHES)}

    def pattern(self, path: str, access: str) -> tuple[str, str]:
        """The pattern for a path, and its reason."""
        for name in ("workspace", "tmp"):
            if path == self._variables[name]:
                return f"{{{name}}}", CROWD
        places = (place for place in self._variables.values() if is_below(path, place) and path != place)
        base, home = max(places, key=len, default=""), self._variables["home"]
        for name in ("workspace", "tmp"):
            if base and base == self._variables[name]:
                glob, reason = _globbed(path[len(base) + 1 :], short_lived=name == "tmp")
                return f"{{{name}}}/{glob}", reason
        if base == home != "/":
            rest = path[len(home) + 1 :]
            folder = _own_folder(f"{rest}/." if path in self._above else rest)
            if folder in self._own and self._may_widen(f"{home}/{folder}"):
                return f"~/{quote(folder)}" + ("/" if access == "write" else ""), OWN
            shared = self._shared_folder(path, access, home)
            if shared:
                return "~/" + quote(shared[len(home) + 1 :]), CROWD
            # Directly in the home `~/.bash_*` would be about the shell's own files.
            glob, reason = _globbed(rest) if "/" in rest or _SAYS_SO.search(rest) else (quote(rest), SINGLE)
            return f"~/{glob}", reason
        shared = self._shared_folder(path, access, "/")
        return (quote(shared), CROWD) if shared else _globbed(path)

    def _shared_folder(self, path: str, access: str, root: str) -> str | None:
        """The folder of a path when many names of it were asked for; never the root itself or what belongs to many."""
        folder = path.rpartition("/")[0]
        if folder == root or belongs_to_many(folder):
            return None
        many = self._in_folder[access][folder] >= MANY
        return folder if many and self._may_widen(folder) else None

    def _may_widen(self, folder: str) -> bool:
        return self._widen and folder not in self._closed


def belongs_to_many(folder: str) -> bool:
    """Whether a folder is never meant as a whole, wherever the home and the workspace are."""
    return folder.count("/") < 2 or folder.rpartition("/")[0] in _ROOTS


def _folders(path: str) -> Iterator[str]:
    """The folders that a path lies in, the root apart."""
    while path := path.rpartition("/")[0]:
        yield path


def _own_folder(rest: str) -> str | None:
    """The folder of one program in the home: `.cache/NAME`, `.NAME`; None where the name is a file or a person's own."""
    for shelf in SHELVES:
        if rest.startswith(shelf + "/"):
            names = rest[len(shelf) + 1 :].split("/")
            return f"{shelf}/{names[0]}" if len(names) > 1 and names[0] != "." else None
    first, slash, below = rest.partition("/")
    if not (slash and below and first.startswith(".")) or first == ".ssh":
        return None
    return None if first in {shelf.partition("/")[0] for shelf in SHELVES} else first


def _globbed(path: str, *, short_lived: bool = False) -> tuple[str, str]:
    """Random parts of names become `*`."""
    names, reason = [], SINGLE
    for name in path.split("/"):
        random = _SHORT_LIVED if short_lived or _SAYS_SO.search(name) else _RANDOM
        parts = random.split(name)
        if len(parts) > 1 and sum(map(str.isalnum, "".join(parts))) >= _FIXED:
            names.append("*".join(map(quote, parts)))
            reason = GLOB
        else:
            names.append(quote(name))
    return "/".join(names), reason


def _covered(value: str, patterns: Collection[str]) -> bool:
    value = value.rstrip("/")
    return value in patterns or any(folder in patterns for folder in _folders(value))


def _without_covered(proposals: Iterable[Proposal]) -> list[Proposal]:
    """Without rules that another one of the same key holds already; its evidence goes there."""
    kept: dict[tuple[str, str], Proposal] = {}
    for proposal in sorted(proposals, key=lambda one: (one.key, len(one.value))):
        value = proposal.value.rstrip("/")
        places = (value, *_folders(value)) if proposal.key.startswith("files.") else (value,)
        above = next((found for place in places if (found := kept.get((proposal.key, place)))), None)
        if above is None:
            kept[proposal.key, value] = proposal
            continue
        above.objects |= proposal.objects
        for program, times in proposal.evidence.items():
            above.evidence[program] = above.evidence.get(program, 0) + times
    return list(kept.values())


def programs(times: Mapping[str, int]) -> str:
    """Who asked and how often, in a few words."""
    most = sorted(times.items(), key=lambda one: (-one[1], one[0]))
    more = f" and {len(most) - 4} more programs" if len(most) > 4 else ""
    return ", ".join(f"{_word(program)} {count}x" for program, count in most[:4]) + more


def _word(program: str) -> str:
    """A program's name in a comment: chosen by whoever is guarded."""
    return "".join(character if character.isprintable() else "?" for character in program)[:32]
