"""The lanes, and what pytest in each guest had to say.

A lane is one boot: a kernel, whether the BPF LSM is active in it, how it preempts itself, and the tests to run. Every lane
has every file system. What is not proved to have passed has failed: a guest that dies, hangs, skips or finds no tests.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import subprocess
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import boot
import kernels
from boot import REPOSITORY, Ended, Machine
from kernels import LaneError

DISKS = ("ext4", "btrfs", "overlay", "tmpfs")
# Modules that an ordinary host loads when somebody asks for what is in them; the guest has nothing that does.
# Newer kernels have the second built in.
LOADED = ("veth", "?nfnetlink")
GUEST_TESTS = ("tests/vm/guest",)
# What a whole session promises, as on any host: readers by every name, changes, ways out, daily work. In the tier of the lane:
# `harness.assert_tier_of_lane`.
SPINE = tuple(
    f"tests/kernel/test_{name}.py" for name in ("files_read", "files_write", "escapes", "usability", "doctor_tier")
)
# What each part of a session does by itself. Not there: what must be done within some seconds.
PARTS = tuple(
    f"tests/kernel/test_{name}.py"
    for name in ("parity", "bpf_network", "bpf_names", "bpf_hosts", "bpf_listen", "bpf_ring", "bpf_trace")
)
# These need the hooks for unix sockets, which came with 6.7, or were only tried with them.
NEWER_PARTS = tuple(f"tests/kernel/test_{name}.py" for name in ("bpf_unix", "network_run", "sockets_run", "supervisor"))
# What a kernel's own hooks, and its verifier, are asked for one by one: where the rest of a lane was proved on another kernel.
HOOKS = tuple(
    f"tests/vm/guest/test_{name}.py" for name in ("lane", "tiers", "each_hook", "builds", "attacks", "lacking_hooks")
)
# Calls that only kernels beyond the stock ones have, in a whole session.
NEW_CALLS = ("tests/kernel/test_new_calls.py",)
# A real agent takes its time, and more memory than the rest.
AGENT = ("tests/agents/test_claude_code.py",)
# A guest's test that says so is reported, and is no failure: some kernels lack what it is about.
NOT_HERE = "not on this lane: "
SECONDS = 1800
SUITES_SECONDS = 3600
MEMORY, AGENT_MEMORY = "2G", "4G"
# A guest compiles slowly, so what its tests run is made before.
PREPARE = (
    ".venv/bin/python",
    "-c",
    "import sys; sys.path.insert(0, 'tests/kernel'); import matrix; matrix.static_acts()",
)
FETCH_AGENT = (".venv/bin/python", "demo/real_agent.py")
COMPILE = (".venv/bin/python", "-m", "compileall", "-q", "src", "demo", "tests")
# What a change must pass before it is taken: tier 2 on the newer kernel, tier 1 on the oldest, and of tier 1 on the newer one
# what may differ there. The rest of the matrix takes too long for every change.
CHOSEN = ("6.12-plain-voluntary", "6.1-bpf-voluntary", "6.12-bpf-voluntary-hooks")
RESULTS = REPOSITORY / ".cache" / "vm"
SAID_LINES = 12


@dataclass(frozen=True)
class Lane:
    """One boot; `preempt` may be "default", which leaves it to the kernel.

    Attributes:
        suites: its name says which tests are run in place of the guest's own: "", "hooks", "spine",
            "parts" or "agent".
    """

    kernel: str
    lsm: str
    preempt: str
    suites: str = ""

    @property
    def name(self) -> str:
        return f"{self.kernel}-{self.lsm}-{self.preempt}{self.suites and '-'}{self.suites}"

    @property
    def tests(self) -> tuple[str, ...]:
        parts = PARTS if self.kernel == "6.1" else (*PARTS, *NEWER_PARTS)
        new = () if self.kernel in kernels.STOCK else NEW_CALLS
        return {"": (*GUEST_TESTS, *new), "hooks": (*HOOKS, *new), "spine": SPINE, "parts": parts, "agent": AGENT}[
            self.suites
        ]

    @property
    def has_headers(self) -> bool:
        """Whether programs of others, which compile themselves, are witnesses there: for the kernels that stay."""
        return self.kernel in kernels.STOCK and not self.suites

    @property
    def seconds(self) -> float:
        """When this is over the lane hangs."""
        return SUITES_SECONDS if self.suites else SECONDS


@dataclass(frozen=True)
class Case:
    """One test of a guest: `outcome` is passed, failed, skipped or not-here; `text` says why."""

    name: str
    outcome: str
    text: str = ""


@dataclass(frozen=True)
class Report:
    """What came back from one lane: its tests, and what was wrong besides them."""

    lane: Lane
    cases: tuple[Case, ...]
    problem: str = ""
    seconds: float = 0.0
    release: str = ""

    @property
    def failed(self) -> list[Case]:
        return [case for case in self.cases if case.outcome in ("failed", "skipped")]

    @property
    def ok(self) -> bool:
        return not self.problem and not self.failed

    def summary(self) -> str:
        """What failed and what pytest said of it, in few lines: of a long log often only its end is kept."""
        told = [f"{case.name}: {case.outcome}\n{_said(case.text)}" for case in self.failed]
        return "\n".join([f"{len(self.failed)} tests failed in the guest", *told, *filter(None, [self.problem])])

    def lines(self) -> list[str]:
        """One line for each test, then what is wrong, then one for the lane."""
        lines = [f"{self.lane.name}: {case.outcome:8} {case.name}" for case in self.cases]
        for case in self.failed:
            lines += [f"--- {self.lane.name}: {case.name}: {case.outcome}", case.text]
        if self.problem:
            lines += [f"--- {self.lane.name}: {self.problem}"]
        passed = sum(case.outcome == "passed" for case in self.cases)
        verdict = "ok" if self.ok else "FAILED"
        lines.append(f"{self.lane.name}: {verdict}, {passed} of {len(self.cases)} passed in {self.seconds:.0f} s")
        return lines


def lanes() -> list[Lane]:
    """The whole matrix: the stock kernels, and the newest beyond them that this host's apt can get."""
    stock = [
        Lane(kernel, lsm, preempt)
        for kernel in kernels.STOCK
        for lsm in ("bpf", "plain")
        for preempt in ("voluntary", "full")
    ]
    # A part of a stock lane, for whom the whole takes too long.
    hooks = [Lane(max(kernels.STOCK, key=kernels.number), "bpf", "voluntary", "hooks")]
    spine = [Lane(kernel, lsm, "voluntary", "spine") for kernel in kernels.STOCK for lsm in ("bpf", "plain")]
    parts = [Lane(kernel, "bpf", "voluntary", "parts") for kernel in kernels.STOCK]
    agent = [Lane(max(kernels.STOCK, key=kernels.number), "bpf", "voluntary", "agent")]
    # The newest kernels no longer know "voluntary".
    newest = [
        Lane(kernel, lsm, "default", suites)
        for kernel in kernels.newer()[-1:]
        for lsm in ("bpf", "plain")
        for suites in ("", "hooks")
    ]
    return [*stock, *hooks, *spine, *parts, *agent, *newest]


def choose(words: Iterable[str]) -> list[Lane]:
    """Lanes by name, by a pattern such as `6.12-*`, or by `all` or `ci`; a word that names none is an error."""
    known = lanes()
    chosen: list[Lane] = []
    for word in words:
        patterns = {"all": ("*",), "ci": CHOSEN}.get(word, (word,))
        found = [lane for lane in known if any(fnmatch.fnmatchcase(lane.name, pattern) for pattern in patterns)]
        if not found:
            raise LaneError(f"no lane is called {word}; there are: all, ci, {', '.join(lane.name for lane in known)}")
        chosen += [lane for lane in found if lane not in chosen]
    return chosen


@contextlib.contextmanager
def running(chosen: Iterable[Lane], at_once: int | None = None) -> Iterator[dict[Lane, Future[Report]]]:
    """Run lanes, one for each processor of the host at a time (or `at_once`); at the end all guests are gone.

    A guest has one processor, so two on two processors take hardly longer than one.
    """
    lanes = list(chosen)
    prepare(lanes)
    stop = threading.Event()
    with ThreadPoolExecutor(at_once or os.cpu_count()) as guests:
        try:
            yield {lane: guests.submit(run, lane, stop) for lane in lanes}
        finally:
            stop.set()
            guests.shutdown(cancel_futures=True)


def prepare(chosen: Iterable[Lane]) -> None:
    """Make and fetch on the host, once, what guests that run beside each other share."""
    lanes = list(chosen)
    for command in (PREPARE, COMPILE, *([FETCH_AGENT] if any(lane.suites == "agent" for lane in lanes) else [])):
        subprocess.run(command, cwd=REPOSITORY, check=True)
    kernels.busybox()
    for lane in lanes:
        kernel = kernels.fetch(lane.kernel)
        if lane.has_headers:
            kernels.headers(kernel)


def run(lane: Lane, stop: threading.Event | None = None) -> Report:
    """Boot the lane, for which `prepare` has been, and run pytest in it; the logs stay in .cache/vm/LANE."""
    folder = RESULTS / lane.name
    folder.mkdir(parents=True, exist_ok=True)
    junit = folder / "junit.xml"
    junit.unlink(missing_ok=True)
    preempt = "" if lane.preempt == "default" else lane.preempt
    machine = Machine(
        *(lane.kernel, lane.lsm, preempt, DISKS, LOADED, lane.has_headers),
        memory=AGENT_MEMORY if lane.suites == "agent" else MEMORY,
        seconds=lane.seconds,
    )
    variables = {
        "MCPGUARD_KERNEL_TESTS": "require",
        "MCPGUARD_LANE_KERNEL": lane.kernel,
        "MCPGUARD_LANE_LSM": lane.lsm,
        "MCPGUARD_LANE_PREEMPT": preempt,
        "MCPGUARD_LANE_DISKS": " ".join(DISKS),
        "MCPGUARD_LANE_HEADERS": "yes" if lane.has_headers else "",
    }
    # A file system that has everything: tmpfs has no extended attributes before 6.6.
    pytest = [".venv/bin/python", "-m", "pytest", "-o", f"timeout={lane.seconds:.0f}", "--basetemp=/vmext4/pytest"]
    words = ["sh", "-c", 'exec "$@" --junitxml="$MCPGUARD_LANE_OUT/junit.xml"', "sh", *pytest, *lane.tests]
    with (folder / "output.log").open("wb") as output:
        ended = boot.boot(
            machine, words, folder=REPOSITORY, variables=variables, output=output, results=folder, stop=stop
        )
    return judge(lane, ended, junit, (folder / "output.log").read_text(errors="replace"))


def judge(lane: Lane, ended: Ended, junit: Path, output: str) -> Report:
    """Hold the guest's end against its results: only what is there and passed counts."""
    cases: tuple[Case, ...] = ()
    problem = ended.why
    if junit.exists():
        try:
            cases = _cases(junit)
        except ElementTree.ParseError as error:
            problem = problem or f"the guest's results cannot be read: {error}"
    elif not problem:
        problem = "the guest left no results"
    passed = [case for case in cases if case.outcome == "passed"]
    failed = [case for case in cases if case.outcome in ("failed", "skipped")]
    if not problem and not passed:
        problem = "no test passed in the guest"
    if not problem and ended.code != 0 and not failed:
        problem = f"pytest in the guest ended with exit code {ended.code}"
    if problem:
        problem = f"{problem}\nthe guest's last output:\n{output[-3000:]}"
    return Report(lane, cases, problem, ended.seconds, ended.release)


def _said(text: str) -> str:
    """Pytest's own lines of a failure, or what there is if there are none, and no more than some of either."""
    lines = text.splitlines()
    said = [line for line in lines if line.startswith("E ")] or lines
    return "\n".join(said[:SAID_LINES])


def _cases(junit: Path) -> tuple[Case, ...]:
    return tuple(_case(element) for element in ElementTree.parse(junit).iter("testcase"))


def _case(element: ElementTree.Element) -> Case:
    name = f"{element.get('classname')}::{element.get('name')}"
    for tag in ("failure", "error"):
        found = element.find(tag)
        if found is not None:
            return Case(name, "failed", found.text or found.get("message") or "")
    skipped = element.find("skipped")
    if skipped is None:
        return Case(name, "passed")
    why = skipped.get("message") or ""
    return Case(name, "not-here" if why.startswith(NOT_HERE) else "skipped", why)
