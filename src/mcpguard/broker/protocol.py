"""The request and the errors that cross between the user's process and the broker (`channel` carries them).

The broker trusts nothing in a request that it can check: types, sizes, who the user is.
"""

from __future__ import annotations

import base64

from mcpguard.errors import HostError, McpguardError
from mcpguard.model.access import Access
from mcpguard.model.plan import OWN_PLACES, FilesPlan, Grant, GuardPlan, KeptPlan, MaskEntry, MountStep, TablePlan
from mcpguard.model.policy import User
from mcpguard.model.values import dataclass
from mcpguard.wire import _abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 6

# Where a bounded request would overflow first, with room to spare.
MAX_ARGUMENTS = 100_000
MAX_ENVIRONMENT = 100_000
# Each takes one of the host's slots.
MAX_KEPT = 32
_MOST_TABLE_BYTES = 12 << 20  # in base64
_MOST_PLACES = 8_192
_TABLE_FIELDS = ("lines", "head", "roots", "branches", *OWN_PLACES.values())
_SWITCHES = _abi.MG_SESSION_NAMESPACES | _abi.MG_SESSION_MEMORY_PROGRAMS | _abi.MG_SESSION_IO_URING


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """Everything the broker needs for one session; plain values, already compiled.

    Attributes:
        guard: the policy in the kernel's hooks; None in tier 3.
        switches: MG_SESSION_* of what the profile permits besides.
        network: fields of the network backend's settings, JSON form.
        seccomp: the filter as an array of `struct sock_filter`.
        cwd: canonical; entered as the user after the mounts are in place.
        kept: what servers can be kept to.
    """

    session: str
    user: User
    argv: tuple[str, ...]
    environment: dict[str, str]
    cwd: str
    umask: int
    files: FilesPlan
    guard: GuardPlan | None
    switches: int
    network: dict[str, Any]
    seccomp: bytes
    kept: tuple[KeptPlan, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "session": self.session,
            "user": {name: getattr(self.user, name) for name in ("uid", "gid", "groups", "name", "home")},
            "argv": list(self.argv),
            "environment": self.environment,
            "cwd": self.cwd,
            "umask": self.umask,
            "grants": [[grant.path, int(grant.access)] for grant in self.files.grants],
            "steps": [_step_to_json(step) for step in self.files.steps],
            "wide": self.files.wide,
            "guard": None if self.guard is None else guard_to_json(self.guard),
            "switches": self.switches,
            "network": self.network,
            "seccomp": base64.b64encode(self.seccomp).decode(),
            "kept": [[one.rule, one.network] for one in self.kept],
        }

    @staticmethod
    def from_json(message: dict[str, Any]) -> LaunchRequest:
        """Check and convert.

        Raises:
            HostError: the two sides are of different versions, or a field is not what it must be.
        """
        if message.get("version") != VERSION:
            raise HostError(
                "the broker and the command are of different versions",
                why=f"the broker speaks version {VERSION}, the command {message.get('version')}",
                do="run `mcpguard setup` again",
                code="broker.version",
            )
        try:
            user = message["user"]
            return LaunchRequest(
                session=_text(message["session"], 64),
                user=User(
                    _number(user["uid"]),
                    _number(user["gid"]),
                    tuple(_number(group) for group in user["groups"]),
                    _text(user["name"], 256),
                    _text(user["home"], 4096),
                ),
                argv=tuple(_text(word, 1 << 20) for word in _list(message["argv"], MAX_ARGUMENTS)),
                environment={
                    _text(name, 1 << 16): _text(value, 1 << 20)
                    for name, value in _mapping(message["environment"], MAX_ENVIRONMENT).items()
                },
                cwd=_path(message["cwd"]),
                umask=_number(message["umask"]) & 0o777,
                files=FilesPlan(
                    tuple(Grant(_path(path), Access(_number(access))) for path, access in message["grants"]),
                    tuple(_step_from_json(step) for step in message["steps"]),
                    wide=_boolean(message["wide"]),
                ),
                guard=None if message["guard"] is None else guard_from_json(message["guard"]),
                switches=_number(message["switches"]) & _SWITCHES,
                network=_mapping(message["network"], 1000),
                seccomp=base64.b64decode(message["seccomp"], validate=True),
                kept=_kept(message["kept"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise HostError(
                "the broker refused a malformed request",
                why=f"{type(error).__name__}: {error}",
                do="reinstall mcpguard, then run `mcpguard setup`",
                code="broker.malformed-request",
            ) from error


def _kept(value: object) -> tuple[KeptPlan, ...]:
    if not isinstance(value, list) or len(value) > MAX_KEPT:
        raise ValueError("not a list of sensible size")
    kept = tuple(KeptPlan(_number(rule), _mapping(network, 1000)) for rule, network in value)
    if len({one.rule for one in kept}) < len(kept):
        raise ValueError("a rule that keeps two")
    return kept


def checked_paths(value: object) -> list[str]:
    """Absolute paths without detours, as steps have them.

    Raises:
        ValueError: something else came.
    """
    return [_path(path) for path in _list(value, MAX_ARGUMENTS)]


def guard_to_json(plan: GuardPlan) -> list[list[str]]:
    """A plan for the hooks as it crosses the line; also to replace the one of a running session."""
    return [
        [base64.b64encode(getattr(table, name)).decode() for name in _TABLE_FIELDS]
        for table in (plan.files, plan.sockets)
    ]


def guard_from_json(value: object) -> GuardPlan:
    """Check and convert. What the bytes mean is the user's own business: they decide about the user's own session only, and
    the kernel follows them nowhere but inside their own maps.

    Raises:
        ValueError: something else came.
    """
    files, sockets = [_table_from_json(table) for table in _list(value, 2)]
    return GuardPlan(files, sockets)


def _table_from_json(value: object) -> TablePlan:
    parts = [
        base64.b64decode(_text(part, _MOST_TABLE_BYTES), validate=True) for part in _list(value, len(_TABLE_FIELDS))
    ]
    plan = TablePlan(*parts)
    root, branch = (key.size - 4 + _abi.MG_PLACE.size for key in (_abi.MG_ROOT_KEY, _abi.MG_BRANCH_KEY))
    if (
        not plan.lines
        or len(plan.lines) % _abi.MG_LINE.size
        # More would be written to the places of somebody else's policy.
        or len(plan.lines) > _abi.MG_LINE.size * _abi.MG_PAGE_LINES * _abi.MG_PAGES_LIMIT
        or len(plan.head) != _abi.MG_POLICY.size
        or len(plan.roots) % root
        or len(plan.branches) % branch
        or len(plan.roots) // root + len(plan.branches) // branch > _MOST_PLACES
        or any(len(getattr(plan, field)) != _abi.MG_PLACE.size for field in OWN_PLACES.values())
    ):
        raise ValueError("tables of an impossible size")
    return plan


def _step_to_json(step: MountStep) -> list[Any]:
    entries = [[entry.path, entry.kind, entry.directory] for entry in step.entries]
    return [step.op, step.path, step.directory, step.target, entries]


def _step_from_json(step: list[Any]) -> MountStep:
    op, path, directory, target, entries = step
    if op not in ("rw", "ro", "noexec", "mask", "hide", "link"):
        raise ValueError(f"unknown step {op!r}")
    return MountStep(
        op,
        _path(path),
        directory is True,
        _path(target) if target else "",
        tuple(MaskEntry(_relative(inner), _kind(kind), is_dir is True) for inner, kind, is_dir in entries),
    )


def _kind(kind: str) -> str:
    if kind not in ("file", "dir", "way", "keep", "keep-rw"):
        raise ValueError(f"unknown kind {kind!r}")
    return kind


def _text(value: object, limit: int) -> str:
    if not isinstance(value, str) or len(value) > limit or "\0" in value:
        raise ValueError("not a text of sensible size")
    return value


def _path(value: object) -> str:
    path = _text(value, 4096)
    if not path.startswith("/") or any(part in (".", "..") for part in path.split("/")):
        raise ValueError(f"not an absolute path: {path!r}")
    return path


def _relative(value: object) -> str:
    path = _text(value, 4096)
    if not path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"not a relative path: {path!r}")
    return path


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 32:
        raise ValueError("not a small number")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")
    return value


def _list(value: object, limit: int) -> list[Any]:
    if not isinstance(value, list) or not value or len(value) > limit:
        raise ValueError("not a list of sensible size")
    return value


def _mapping(value: object, limit: int) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > limit:
        raise ValueError("not a mapping of sensible size")
    return value


def error_to_json(error: McpguardError) -> dict[str, Any]:
    return {"error": [error.what, error.why, error.do, error.code]}


def error_from_json(message: dict[str, Any]) -> HostError:
    what, why, do, code = message["error"]
    return HostError(str(what), why=str(why), do=str(do), code=str(code))
