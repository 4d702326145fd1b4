"""What `npx`, `uvx`, `docker run` and their like fetch and run, read from their arguments. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import PurePosixPath

from mcpguard.model.values import dataclass

UNPINNED = "unpinned"
_NPM_VERSION = re.compile(r"\d+\.\d+\.\d+(?:[-+][\w.+-]+)?\Z")
_PYTHON_VERSION = re.compile(r"\d[\w.!+]*\Z")
_COMMIT = re.compile(r"(?:@|#|#commit=)[0-9a-f]{40}(?:[#&]|\Z)|[#&]sha256=[0-9a-f]{64}")
_IMAGE_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}\Z")
_LOCAL = ("./", "../", "/", "~/", "file:")
_PYTHON_SPEC = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*(?:\[[\w,. -]*\])?)\s*(?P<version>(?:===?|@|[<>=!~]=?).*)?\Z", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Package:
    """What a package runner was asked for.

    Attributes:
        runner: `npx`, `uvx`, `docker`, …
        name: of the package or image, without its version; a URL or path where it is one.
        version: exact version, commit or digest; UNPINNED where the next start may fetch something else.
        wanted: version as written, where it is no exact one: `latest`, `^1.2`, a tag; else empty.
    """

    runner: str
    name: str
    version: str
    wanted: str = ""

    @property
    def pinned(self) -> bool:
        return self.version != UNPINNED

    @property
    def image(self) -> bool:
        return self.runner in _CONTAINERS

    def __str__(self) -> str:
        return f"{self.runner} {self.name} {self.version}" + (f" ({self.wanted})" if self.wanted else "")


_TOKENS = re.compile(r"[\s;&|(){}$`'\"<>=,]+")
_ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# What a shell takes out of a word: `n'p'x` and `n\px` are npx.
_QUOTES = re.compile(r"\\\n|['\"\\]")
# Where a shell begins a command.
_SHELLS_EXEC = re.compile(r"(?<!\\)([;&|({\n]|\A)[^\S\n]*exec\s")
_NODE = {
    "npx": (),
    "bunx": (),
    "pnpx": (),
    "pnpm": ("dlx", "exec"),
    "yarn": ("dlx",),
    "npm": ("exec", "x"),
    "bun": ("x",),
}
_PYTHON = {"uvx": (), "uv": ("tool", "run"), "pipx": ("run",)}
_CONTAINERS = {"docker": ("run",), "podman": ("run",), "nerdctl": ("run",)}
RUNNERS = frozenset((*_NODE, *_PYTHON, *_CONTAINERS))
# By what each of them fetches something and executes it, whatever the words for it are; empty: by all.
_INSTALLING = ("install", "i", "ci", "add", "update", "up")
_SCRIPTS = ("run", "run-script", "rum", "urn", "start", "test", "t", "tst", "stop", "restart")
# Any word: what is none of their own is the name of a script.
_ANY = ("*",)
_FETCHING = {
    **_NODE,
    **_PYTHON,
    "npm": ("exec", "x", "init", "innit", "create", *_SCRIPTS, *_INSTALLING),
    **dict.fromkeys(("pnpm", "yarn", "yarnpkg"), _ANY),
    "bun": ("x", "create", "c", "run", *_INSTALLING),
    "uv": ("tool", "run", "sync", "pip", "add"),
    **dict.fromkeys(("poetry", "pdm", "hatch", "pipenv", "rye", "pixi"), ("run", "install", "sync", "shell")),
}
# They fetch what an address names, and compile or run what is on the disk.
_BY_ADDRESS = {
    "deno": re.compile(r"(?:jsr|npm|https?):"),
    "go": re.compile(r"(?!\.{0,2}/)[\w.~/-]+@[\w.+-]+\Z", re.ASCII),
}
# The word behind one of these may be its value, and not what is run.
_BEFORE_A_VALUE = {
    "deno": re.compile(
        r"-c\Z|--(?:config|import-map|cert|lock|preload|import|require|env-file|location|log-level|seed)\Z"
    ),
    "go": re.compile(r"-[^=]*\Z"),
}
_DENOS_VERBS = ("run", "serve", "x")
_ON_DISK = re.compile(r"\.{0,2}/|\.{1,2}\Z|.*\.(?:[mc]?[jt]sx?|go)\Z")
# Of words in which it is looked where each runner stands and what follows it; nobody writes more.
_MOST_TOKENS = 1_000
_SCRIPT = re.compile(rf"(?P<name>{'|'.join(_FETCHING)})(?:-cli|-[\d.]*\d)?\.(?:[cm]?js|pyz)\Z")
_MODULES = ("node_modules", "nodejs", "site-packages", "dist-packages")
# Options whose value is the next word; what is not known here and has no `=` is taken for a switch.
_VALUES = {
    "node": {
        "-p",
        "--package",
        "-c",
        "--call",
        "-w",
        "--workspace",
        "--registry",
        "--cache",
        "--prefix",
        "--userconfig",
    },
    "python": {
        *(
            "--from",
            "--with",
            "--with-editable",
            "--with-requirements",
            "-p",
            "--python",
            "--index",
            "--index-url",
            "-i",
        ),
        *(
            "--default-index",
            "--extra-index-url",
            "--find-links",
            "-f",
            "--cache-dir",
            "--directory",
            "--project",
            "--spec",
        ),
        *("--pip-args", "--constraints", "-c", "--overrides", "--refresh-package", "--env-file", "--config-file", "-w"),
        *("--exclude-newer", "--resolution", "--prerelease", "--link-mode", "--color", "--backend"),
    },
    "container": {
        *(
            "-e",
            "--env",
            "--env-file",
            "-v",
            "--volume",
            "--mount",
            "--name",
            "--network",
            "--net",
            "-p",
            "--publish",
            "-u",
        ),
        *(
            "--user",
            "-w",
            "--workdir",
            "--entrypoint",
            "-l",
            "--label",
            "--platform",
            "--pull",
            "--add-host",
            "--cap-add",
        ),
        *(
            "--cap-drop",
            "--device",
            "--dns",
            "--gpus",
            "-h",
            "--hostname",
            "--ip",
            "--ipc",
            "--log-driver",
            "--log-opt",
        ),
        *(
            "-m",
            "--memory",
            "--cpus",
            "--pid",
            "--restart",
            "--runtime",
            "--security-opt",
            "--shm-size",
            "--stop-timeout",
        ),
        *(
            "--tmpfs",
            "--ulimit",
            "--userns",
            "-a",
            "--attach",
            "--cidfile",
            "--memory-swap",
            "--pids-limit",
            "--expose",
        ),
        *(
            "--context",
            "-H",
            "--host",
            "--config",
            "--log-level",
            "--connection",
            "--url",
            "--link",
            "--network-alias",
            "--volumes-from",
            "--annotation",
            "--health-cmd",
            "--isolation",
            "--sysctl",
        ),
    },
}
_NAMED = {"node": ("-p", "--package"), "python": ("--from", "--spec"), "container": ()}


def of(program: str, args: Sequence[str]) -> Package | None:
    """The package that these words run; None where they run no package."""
    runner = PurePosixPath(program).name
    for family, runners in (("node", _NODE), ("python", _PYTHON), ("container", _CONTAINERS)):
        if runner in runners:
            if family == "container" and _words(list(args), _VALUES[family], (), 0)[0][:1] == ["container"]:
                at = list(args).index("container")  # `docker container run` is `docker run`
                args = [*args[:at], *args[at + 1 :]]
            return _of(runner, family, runners[runner], list(args))
    return None


def mentioned(words: Sequence[str], behind: int = 0, is_folder: Callable[[str], bool] = lambda path: False) -> str:
    """A runner of packages that these words have fetch something, by its name, its place or its script; empty: there is none.

    For commands that are known only in part: what another program or a shell is told to run.

    Args:
        behind: how many of the last words are for a script that is known. Of those a runner that is named last, in its text or
            of all, fetches nothing: `--allow "git npx"`.
        is_folder: whether an absolute path is a folder's that no interpreter runs: `--root=/srv/uv`.
    """
    return _named([_tokens(word) for word in words], behind, is_folder) or _named(
        [_tokens(_QUOTES.sub("", word)) for word in words], behind, is_folder
    )


def named(text: str) -> str:
    """A runner of packages that a text names, whatever it is told; empty: there is none."""
    tokens = _tokens(text)
    found = (_runner(token, anywhere=False) for token in tokens)
    # Two of them are words of other use.
    return next((runner for runner in found if runner and (runner not in _BY_ADDRESS or len(tokens) == 1)), "")


def _named(texts: Sequence[list[str]], behind: int, is_folder: Callable[[str], bool]) -> str:
    if sum(map(len, texts)) > _MOST_TOKENS:
        return next((runner for tokens in texts for token in tokens if (runner := _runner(token, anywhere=True))), "")
    for place, tokens in enumerate(texts):
        own = place >= len(texts) - behind
        more = [token for later in texts[place + 1 :] for token in later]
        for at, token in enumerate(tokens):
            runner = _runner(token, anywhere=not own)
            rest = tokens[at + 1 :] + ([] if own and len(tokens) > 1 else more)
            fetches = runner and (rest or not own) and _fetches(runner, rest, by_itself=len(tokens) == 1)
            if fetches and not _is_no_program(token, is_folder):
                return runner
    return ""


def _is_no_program(token: str, is_folder: Callable[[str], bool]) -> bool:
    """Whether a runner's name is that of a folder, or the end of an address. What is inside of a package is a program as well:
    interpreters find the file in it that they run."""
    if "/" not in token or any(part in _MODULES for part in PurePosixPath(token).parts):
        return False
    # Of `a:/b` and lists of places each.
    places = [part for part in token.split(":") if "/" in part]
    folders = all(part.startswith("/") and is_folder(part) for part in places)
    return token.endswith("/") or _ADDRESS.match(token) is not None or folders


def _tokens(word: str) -> list[str]:
    """The words of a shell's text, without the `exec` of the shell's own."""
    return [token for token in _TOKENS.split(_SHELLS_EXEC.sub(r"\1 ", word)) if token]


def _runner(token: str, *, anywhere: bool) -> str:
    """The runner that a program or a script is: of `npx`, `/usr/bin/npx`, `npx-cli.js`, and of each file of npm's.

    Args:
        anywhere: programs may lie in any folder, as those of version managers do; else in such as `bin`.
    """
    path = PurePosixPath(token)
    if (path.name in _FETCHING or path.name in _BY_ADDRESS) and (
        anywhere or len(path.parts) == 1 or path.parent.name in ("bin", ".bin")
    ):
        return path.name
    if script := _SCRIPT.match(path.name):
        return script["name"]
    return next((part for above, part in pairwise(path.parts) if above in _MODULES and part in _FETCHING), "")


def _fetches(runner: str, rest: Sequence[str], *, by_itself: bool) -> bool:
    """Whether a runner with these words behind it fetches a package.

    A word directly behind it is what it shall do. Behind an option nobody knows which word that is, for options may have a
    value; nor in the text of a shell, which may take some of it for itself. There any of them may be.

    Args:
        by_itself: it is a word of its own, and no part of a text.
    """
    if runner in _BY_ADDRESS:
        if runner == "deno" and "task" in (rest if rest[:1] and rest[0].startswith("-") else rest[:1]):
            return True
        if runner == "deno":  # needs no verb
            begins = rest and (rest[0] in _DENOS_VERBS or rest[0].startswith("-") or is_address(runner, rest[0]))
            return bool(begins) and _run_fetches(runner, rest)
        return "run" in rest and _run_fetches(runner, rest[rest.index("run") + 1 :])
    verbs = _FETCHING[runner]
    if verbs == _ANY:
        return bool(rest)
    if runner == "bun" and rest[:1] == ["run"] and rest[1:] and _ON_DISK.match(rest[1]) and "/" in rest[1]:
        return False
    may_be = rest[:1] if by_itself and rest and not rest[0].startswith("-") else rest
    # npm takes the beginning of a name for the name.
    short = [word for word in may_be if runner == "npm" and len(word) > 1]
    return (
        not verbs
        or any(word in verbs for word in may_be)
        or any(verb.startswith(word) for word in short for verb in verbs)
    )


def is_address(runner: str, word: str) -> bool:
    """Whether `deno run` or `go run` fetches what this word names."""
    return _BY_ADDRESS[runner].match(word) is not None


def _run_fetches(runner: str, words: Sequence[str]) -> bool:
    """Whether `deno run` or `go run` is told an address. What stands behind a file is for the program."""
    before = ""
    for word in words:
        if is_address(runner, word):
            return True
        if _ON_DISK.match(word) and not _BEFORE_A_VALUE[runner].match(before):
            return False
        before = word
    return False


def _of(runner: str, family: str, verbs: tuple[str, ...], args: list[str]) -> Package | None:
    words, named = _words(args, _VALUES[family], _NAMED[family], len(verbs) if runner == "uv" else bool(verbs))
    if runner == "uv":
        if words[:2] != ["tool", "run"]:
            return None
        words = words[2:]
    elif verbs:
        if not words or words[0] not in verbs:
            return None
        words = words[1:]
    wanted = named or words[:1]
    if not wanted:
        return None
    # More than one: each of them is installed, and the first that is not exact makes the whole inexact.
    packages = [_READERS[family](runner, text) for text in wanted]
    return next((package for package in packages if not package.pinned), packages[0])


def _words(args: list[str], valued: set[str], naming: tuple[str, ...], verbs: int) -> tuple[list[str], list[str]]:
    """Words that are no options, `verbs` of them and one more; and the values of options that name a package."""
    words: list[str] = []
    named: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            words += rest
        elif arg.startswith("-") and len(arg) > 1:
            option, equals, value = arg.partition("=")
            if option in valued and not equals:
                value = next(rest, "")
            if option in naming:
                named.append(value)
        else:
            words.append(arg)
        if len(words) > verbs:
            break  # what follows is the package's own
    return words, named


def _npm(runner: str, text: str) -> Package:
    if _is_url(text):
        return _url(runner, text)
    name, _, version = text.rpartition("@") if "@" in text[1:] else (text, "", "")
    exact = _NPM_VERSION.match(version.removeprefix("npm:"))
    return Package(runner, name, version) if exact else Package(runner, name, UNPINNED, version)


def _python(runner: str, text: str) -> Package:
    if _is_url(text):
        return _url(runner, text)
    found = _PYTHON_SPEC.match(text)
    if found is None:
        return Package(runner, text, UNPINNED)
    wanted = (found["version"] or "").strip()
    version = wanted.lstrip("=@").strip() if wanted.startswith(("==", "@")) else ""
    exact = _PYTHON_VERSION.match(version)
    return Package(runner, found["name"], version) if exact else Package(runner, found["name"], UNPINNED, wanted)


def _image(runner: str, text: str) -> Package:
    digest = _IMAGE_DIGEST.search(text)
    name, _, tag = text[: digest.start()].rpartition(":") if digest else text.rpartition(":")
    if not name or "/" in tag:  # `host:5000/name` has a port and no tag
        name, tag = (text[: digest.start()] if digest else text), ""
    return Package(runner, name, digest[0][1:]) if digest else Package(runner, name, UNPINNED, tag)


def _is_url(text: str) -> bool:
    if text in (".", "..") or text.startswith(("git+", *_LOCAL)):
        return True
    return (
        ("/" in text and not text.startswith("@")) or "://" in text or text.startswith(("github:", "gitlab:", "gist:"))
    )


def _url(runner: str, text: str) -> Package:
    """A repository, an archive or a folder: exact where a commit or a sum is named; a folder is on this machine."""
    commit = _COMMIT.search(text)
    if commit:
        return Package(runner, text[: commit.start()], commit[0].strip("@#&"))
    local = text in (".", "..") or text.startswith(_LOCAL)
    return Package(runner, text, "local") if local else Package(runner, text, UNPINNED)


_READERS = {"node": _npm, "python": _python, "container": _image}
