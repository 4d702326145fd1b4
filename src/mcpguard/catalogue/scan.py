"""What is wrong with the declared servers, told from their settings alone: nothing is started, nothing is sent."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from mcpguard.catalogue import literal, settings
from mcpguard.catalogue import package as packages
from mcpguard.catalogue.clients import File
from mcpguard.catalogue.findings import RULES, Finding
from mcpguard.catalogue.identity import MAX_WORDS, MISSING, brief
from mcpguard.catalogue.package import Package
from mcpguard.catalogue.reading import UnreadableError, content
from mcpguard.catalogue.server import Server
from mcpguard.catalogue.starting import expanded
from mcpguard.catalogue.survey import Row, Survey
from mcpguard.catalogue.tracked import is_tracked
from mcpguard.mcp.hidden import hidden
from mcpguard.mcp.masking import LOOKED_AT

_MAX_LINES = 4 << 20
_MOST = 200
# Of JSON, a table of TOML, of YAML.
_KEY = re.compile(
    r'"((?:[^"\\\n]|\\.)*+)"[ \t]*:|^[ \t]*\[(?:[\w-]+\.)*"?([^"\]\n.]+)"?\]|^[ \t]*([\w.-]+)[ \t]*:', re.MULTILINE
)
_SHELLS = ("sh", "bash", "dash", "zsh", "ksh", "fish")
_DOWNLOADED = re.compile(
    r"\b(?:curl|wget)\b[^|;&]*\|\s*(?:sudo\s+)?(?:env\s+)?(?:ba|da|z|k)?(?:sh|python3?|node|perl|ruby)\b|(?:<|\$)\(\s*(?:curl|wget)\b"
)
_LOOPBACK = re.compile(
    r"localhost|.*\.localhost|127(?:\.\d{1,3}){3}|::1|0:0:0:0:0:0:0:1|host\.docker\.internal|0\.0\.0\.0\Z"
)
_ROOTS = re.compile(r"root|dir|path|repo|folder|allow|mount|vol|workspace|project|base|home", re.I)
_CODE = ("LD_PRELOAD", "LD_AUDIT", "BASH_ENV", "PYTHONSTARTUP")
_OPTIONED = ("NODE_OPTIONS", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "RUBYOPT", "PERL5OPT", "BUN_OPTIONS")
_OPTIONS = re.compile(r"(?:^|\s)(?:-r|--require|--import|--loader|--experimental-loader|-javaagent|-agentpath)")
_UNCHECKED = {
    "NODE_TLS_REJECT_UNAUTHORIZED": ("0",),
    "PYTHONHTTPSVERIFY": ("0",),
    "GIT_SSL_NO_VERIFY": ("1", "true"),
    "NPM_CONFIG_STRICT_SSL": ("false",),
    "npm_config_strict_ssl": ("false",),
}
_PRIVILEGES = {
    *("--privileged", "--privileged=true", "--net=host", "--network=host", "--pid=host", "--ipc=host", "--userns=host"),
    *("--uts=host", "--cap-add=ALL", "--cap-add=SYS_ADMIN"),
}
_SOCKETS = ("docker.sock", "podman.sock", "containerd.sock")


def scan(found: Survey, environment: Mapping[str, str]) -> list[Finding]:
    """Everything that is wrong with what is declared for the user and the project.

    Args:
        environment: the user's; HOME says what the whole home is.
    """
    rows, lines = [row for row in found.rows if row.here], Lines()
    project = Path(found.inventory.project)
    reports = [finding for row in rows for finding in _Server(row, environment, project, lines).findings()]
    told = {finding.file for finding in reports if finding.rule.name == "literal-secret"}
    reports += _shadowed(rows, lines)
    declaring = {row.server.file for row in rows}
    reports += [one for file in found.inventory.files for one in _of_file(file, declaring=declaring, secretive=told)]
    return sorted(dict.fromkeys(reports), key=lambda one: (one.file, one.line, one.rule.name, one.server))


class Lines:
    """Where keys stand in files, each of which is read once."""

    def __init__(self) -> None:
        self._files: dict[str, dict[str, int]] = {}

    def of(self, file: str, name: str) -> int:
        """The line on which a server is declared, as near as its name tells; 0 where it does not stand so."""
        if file not in self._files:
            self._files[file] = _keys(file)
        return self._files[file].get(name, 0)


def _keys(file: str) -> dict[str, int]:
    """Keys of a file, as they are written, with the line of the first of each."""
    try:
        text = content(Path(file), _MAX_LINES)[0].decode(errors="replace")
    except (FileNotFoundError, UnreadableError):
        return {}
    found: dict[str, int] = {}
    line, before = 1, 0
    for key in _KEY.finditer(text):
        line, before = line + text.count("\n", before, key.start()), key.start()
        found.setdefault(key[1] or key[2] or key[3], line)
    return found


class _Server:
    """The checks of one server."""

    def __init__(self, row: Row, environment: Mapping[str, str], project: Path, lines: Lines) -> None:
        self.row, self.server = row, row.server
        self.environment, self.project = environment, project
        self.home = environment.get("HOME", "").rstrip("/")
        self.line = lines.of(self.server.file, self.server.name)

    def findings(self) -> Iterator[Finding]:
        checks = (self._secrets, self._packages, self._places, self._variables, self._remote, self._code)
        for name, detail in (pair for check in (*checks, self._words, self._trust) for pair in check()):
            yield of_server(name, detail, self.server, self.line)

    def _secrets(self) -> Iterator[tuple[str, str]]:
        server = self.server
        found = [(f"variable {name}", secret) for name, secret in literal.in_pairs(server.env)]
        found += [(f"header {name}", secret) for name, secret in literal.in_pairs(server.headers)]
        found += literal.in_words(server.words[:MAX_WORDS])
        found += [(f"{name} of the URL", secret) for name, secret in literal.in_url(server.url[:LOOKED_AT])]
        for place, secret in found:
            yield "literal-secret", f"{_brief(place)} {literal.brief(secret)}"

    def _packages(self) -> Iterator[tuple[str, str]]:
        for package in _fetched(self.server.words[:MAX_WORDS]):
            name = "image-without-digest" if package.image else "unpinned-package"
            if not package.pinned:
                yield name, _brief(str(package))
            if package.image:
                yield "container", _brief(f"{package.runner} {package.name}")
        text = _shell_text(self.server.words)
        if _DOWNLOADED.search(text[:LOOKED_AT]):
            yield "download-and-run", _brief(text)

    def _places(self) -> Iterator[tuple[str, str]]:
        """Folders that a server is given: words that are one, behind an option for one, or what a container mounts."""
        known = {**self.environment, "workspaceFolder": str(self.project)}
        package = packages.of(self.server.command, self.server.args)
        container = package is not None and package.image
        for word, option, text in _options(self.server.args[:MAX_WORDS]):
            if container and (word in _PRIVILEGES or f"{option}={text}" in _PRIVILEGES):
                yield "privileged-container", f"{option}={text}" if option else word
            elif container:
                yield from self._mounted(option, text, known)
            elif (not option or _ROOTS.search(option)) and self._is_wide(expanded(text, known)):
                yield "wide-root", _brief(text)
        for name, text in self.server.env.items():
            if _ROOTS.search(name) and name not in ("HOME", "PATH") and self._is_wide(expanded(text, known)):
                yield "wide-root", f"variable {name}={text}"

    def _mounted(self, option: str, text: str, known: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        given = expanded(text, known)
        if option in ("-v", "--volume"):
            source = given.partition(":")[0]
        elif option == "--mount":
            parts = dict(part.partition("=")[::2] for part in given.split(","))
            source = parts.get("src") or parts.get("source") or ""
        else:
            return
        if source.endswith(_SOCKETS):
            yield "privileged-container", f"{option} {_brief(text)}"
        elif self._is_wide(source):
            yield "wide-root", f"{option} {_brief(text)}"

    def _is_wide(self, text: str) -> bool:
        if text.startswith("~"):
            text = self.home + text[1:]
        text = os.path.normpath(text) if text.startswith("/") else ""
        above = {str(folder) for folder in (Path(self.home), *Path(self.home).parents)} if self.home else set()
        return text in {"/", "//", "/home", *above}

    def _variables(self) -> Iterator[tuple[str, str]]:
        for name, text in self.server.env.items():
            if (name in _CODE and text) or (name in _OPTIONED and _OPTIONS.search(text[:LOOKED_AT])):
                yield "code-by-variable", f"{name}={_brief(text)}"
            if text.lower() in _UNCHECKED.get(name, ()):
                yield "no-certificates", f"{name}={text}"
            if name.upper().endswith(("REGISTRY", "INDEX_URL", "INDEX")) and _is_plain(text):
                yield "plain-http", f"variable {name}: {_brief(text)}"

    def _remote(self) -> Iterator[tuple[str, str]]:
        if _is_plain(self.server.url):
            yield "plain-http", _brief(self.server.url)
        # Bridges such as mcp-remote are told in their words where to go.
        for word in self.server.args[:MAX_WORDS]:
            if _is_plain(word):
                yield "plain-http", _brief(word)

    def _code(self) -> Iterator[tuple[str, str]]:
        for code in self.row.identity.code if self.row.identity else ():
            if code.sha256 == MISSING:
                continue
            path = Path(code.path)
            if writer := _writable(path):
                yield "writable-program", f"{code.role} {path}: {writer}"
            elif path.is_relative_to(self.project) and str(self.project) not in ("/", self.home):
                yield "program-in-project", f"{code.role} {path}"

    def _words(self) -> Iterator[tuple[str, str]]:
        server = self.server
        parts = [("the name", server.name), ("the URL", server.url), ("the folder", server.cwd)]
        parts += [("the command", word) for word in server.words]
        parts += [("a variable", text) for pair in (*server.env.items(), *server.headers.items()) for text in pair]
        parts += [("the description", text) for text in server.texts]
        for place, text in parts:
            if chars := hidden(text):
                yield "hidden-characters", f"in {place}: {chars}"

    def _trust(self) -> Iterator[tuple[str, str]]:
        for text in self.server.helpers:
            yield "helper-command", _brief(text)
        for text in self.server.automatic:
            yield "auto-approval", _brief(text)
        if self.server.scope == "project" and not self.row.state.allowed and is_tracked(Path(self.server.file)):
            yield "brought-by-repository", self.row.starts[:_MOST]


def _brief(text: str) -> str:
    return brief(text)[:_MOST]


def of_server(name: str, detail: str, server: Server, line: int) -> Finding:
    """A finding about a server."""
    return Finding(RULES[name], detail, server.file, line, server.name, server.client, server.scope)


def _options(words: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Each word, with the option that it belongs to, or none, and the value that it holds."""
    before = ""
    for word in words:
        option, equals, value = word.partition("=")
        if word.startswith("-") and equals:
            yield word, option, value
        elif word.startswith("-"):
            yield word, "", word
        else:
            yield word, before, word
        before = word if word.startswith("-") and not equals else ""


def _shadowed(rows: Sequence[Row], lines: Lines) -> Iterator[Finding]:
    for at, row in enumerate(rows):
        server = row.server
        for other in (one.server for one in rows[:at]):
            same = (other.name, other.client) == (server.name, server.client) and other.place != server.place
            if same and (other.words, other.url) != (server.words, server.url):
                yield of_server("shadowed-name", f"also in {other.file}", server, lines.of(server.file, server.name))


def _of_file(file: File, *, declaring: set[str], secretive: set[str]) -> Iterator[Finding]:
    def finding(name: str, detail: str) -> Finding:
        return Finding(RULES[name], detail, file.path, 0, "", file.place.client, file.place.scope)

    if file.document is None:
        yield finding("unreadable-file", file.problem)
        return
    if file.path in declaring and file.path.startswith("/") and (writer := _writable(Path(file.path).resolve())):
        yield finding("writable-settings", writer)
    if file.document.repeated and file.path in declaring:
        yield finding("repeated-key", ", ".join(file.document.repeated[:5]))
    if file.path in secretive and _others_read(Path(file.path), file.document.mode):
        yield finding("readable-secret", f"mode {file.document.mode:04o}")
    for detail in settings.automatic(file):
        yield finding("auto-approval", detail)


def _fetched(words: Sequence[str]) -> Iterator[Package]:
    """The packages that a command runs, also one that a shell or a wrapper is told of."""
    command, args = words[0] if words else "", words[1:]
    if package := packages.of(command, args):
        yield package
        return
    text = _shell_text(words)
    try:
        inner = shlex.split(text[:LOOKED_AT], comments=True) if text else list(args)
    except ValueError:
        inner = text.split()
    for at, word in enumerate(inner):
        if Path(word).name in packages.RUNNERS and (package := packages.of(word, _until_next(inner[at + 1 :]))):
            yield package
            return


def _until_next(words: Sequence[str]) -> list[str]:
    """Words of one command of a shell's text."""
    end = next((at for at, word in enumerate(words) if word in ("&&", "||", ";", "|")), len(words))
    return list(words[:end])


def _shell_text(words: Sequence[str]) -> str:
    """What a shell is told to run; empty where the command is no shell with `-c`."""
    for at, word in enumerate(words):
        if Path(word).name in _SHELLS:
            rest = words[at + 1 :]
            return next((rest[i + 1] for i, one in enumerate(rest[:-1]) if re.fullmatch(r"-[a-z]*c", one)), "")
    return ""


def _is_plain(url: str) -> bool:
    if not url.lower().startswith(("http://", "ws://")):
        return False
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return True
    return not _LOOPBACK.fullmatch(host.lower()) and not host.startswith("$")


def _writable(path: Path) -> str:
    """Who else can change a file, or put another in its place; empty for nobody."""
    for at, part in enumerate((path, *path.parents)):
        try:
            status = part.stat()
        except (OSError, ValueError):
            return ""
        sticky = at > 0 and status.st_mode & stat.S_ISVTX
        if status.st_mode & stat.S_IWOTH and not sticky and _reachable(part):
            return f"everybody can write {part}"
        if status.st_uid not in (0, os.getuid()):
            return f"{part} belongs to another user"
    return ""


def _others_read(path: Path, mode: int) -> bool:
    """Whether everybody can read a file."""
    return bool(mode & stat.S_IROTH) and _reachable(path)


def _reachable(path: Path) -> bool:
    """Whether everybody can go through every folder above."""
    try:
        return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.resolve().parents)
    except OSError:
        return True
