"""The kernel's walk and Python's never differ: by the shared case file, for random rules and trees, whatever is mounted where.

The walk runs on real files by system call (see `parity`), so nothing here needs the BPF LSM.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import struct
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from decisions import Case, cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parity import ALL, Parity, Seen, Tree, device_of, differences
from path_rules import COMPONENTS, NAMES, RULES, split

from mcpguard.backends import guard
from mcpguard.kernel import mounts, syscalls
from mcpguard.model.access import PATH_EFFECTS, Access, Effect
from mcpguard.model.paths import is_below
from mcpguard.model.plan import TablePlan
from mcpguard.model.policy import PathRule
from mcpguard.policy.automaton import Automaton
from mcpguard.session.places import table_plan
from mcpguard.wire import _abi, encode

if TYPE_CHECKING:
    from mcpguard.backends.engine import Engine

pytestmark = pytest.mark.kernel
READ, WRITE, EXECUTE = Access.READ, Access.WRITE, Access.EXECUTE
CASES = cases()
MS_BIND, MNT_DETACH = 4096, 2
PATH_BYTES = 255


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parity]:
    from harness import need_root

    need_root()
    made = Parity(tmp_path_factory.mktemp("parity"))
    yield made
    made.close()


@pytest.fixture
def tree() -> Iterator[Tree]:
    made = Tree()
    yield made
    made.close()


def ask(parity: Parity, tree: Tree, path: str | bytes) -> Seen:
    fd = tree.make(path)
    try:
        return parity.ask(fd)
    finally:
        os.close(fd)


# --- one file system, one name ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.about)
def test_the_kernel_says_what_is_written(parity: Parity, tree: Tree, case: Case) -> None:
    parity.place(case.automaton, [tree.mounted_at("/")])
    for path in case.paths:
        seen = ask(parity, tree, path.path)
        refused = tuple(0 if 1 << bit & path.allowed else rule for bit, rule in enumerate(path.rules))
        said = (seen.detail, seen.allowed, seen.protected, seen.rules, seen.pinned)
        assert said == (0, path.allowed, path.taken, refused, path.pinned), path.path[:100]
    for one, other in case.same:
        assert ask(parity, tree, one).below == ask(parity, tree, other).below, (one, other)
    for one, other in case.differ:
        assert ask(parity, tree, one).below != ask(parity, tree, other).below, (one, other)


def test_only_the_rules_of_what_was_asked_and_refused_are_told(parity: Parity, tree: Tree) -> None:
    automaton = Automaton.build(
        [PathRule(Effect.ALLOW, READ, "/", (), 1), PathRule(Effect.READONLY, WRITE, "/r", (), 2)]
    )
    parity.place(automaton, [tree.mounted_at("/")])
    fd = tree.make("/r")
    assert [parity.ask(fd, asked).rules for asked in (READ, WRITE, EXECUTE, ALL)] == [
        (0, 0, 0),
        (0, 2, 0),
        (0, 0, 0),
        (0, 2, 0),
    ]
    os.close(fd)


def test_a_path_that_is_too_deep_is_refused(parity: Parity, tree: Tree) -> None:
    parity.place(Automaton.build([PathRule(Effect.ALLOW, ALL, "/", (), 1)]), [tree.mounted_at("/")])
    deepest, deeper = tree.make("/d" * 1024), tree.make("/d" * 1025)
    assert parity.ask(deepest).allowed == ALL
    seen = parity.ask(deeper)
    assert (seen.allowed, seen.detail) == (Access.NONE, _abi.MG_DETAIL_DEEP)
    os.close(deepest)
    os.close(deeper)


def test_without_a_policy_everything_is_refused(parity: Parity, tree: Tree) -> None:
    seen = parity.ask(tree.fd, index=_abi.MG_POLICIES_LIMIT - 1)
    assert (seen.allowed, seen.detail) == (Access.NONE, _abi.MG_DETAIL_NO_POLICY)
    seen = parity.ask(tree.fd, index=_abi.MG_POLICIES_LIMIT)
    assert (seen.allowed, seen.detail) == (Access.NONE, _abi.MG_DETAIL_NO_POLICY)


def test_a_file_is_judged_by_its_name_when_it_is_made_and_when_it_is_gone(parity: Parity, tree: Tree) -> None:
    rules = [PathRule(Effect.ALLOW, READ, "/", (), 1), PathRule(Effect.DENY, ALL, "/**/.env", (), 2)]
    automaton = Automaton.build(rules)
    parity.place(automaton, [tree.mounted_at("/")])
    # A descriptor of a mount that is attached nowhere can only be opened below, not reopened.
    for name in (".env", "env"):
        fd = os.open(name, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=tree.fd)
        assert not differences(automaton, f"/{name}", parity.ask(fd))
        os.unlink(name, dir_fd=tree.fd)
        assert not differences(automaton, f"/{name}", parity.ask(fd))
        os.close(fd)


@pytest.mark.parametrize("depth", [1, 6, 7, 8, 9, 15, 16, 17, 30, 63, 64, 65, 72, 73, 100, 200])
def test_a_name_that_says_something_is_not_passed_over_among_names_that_do_not(
    parity: Parity, tree: Tree, depth: int
) -> None:
    """The kernel passes over names that begin with no byte of any pattern, eight at a time and, further down, by a bit each."""
    rules = [
        PathRule(Effect.ALLOW, ALL, "/srv", (), 1),
        PathRule(Effect.DENY, ALL, "/srv/**/.env*", (), 2),
        PathRule(Effect.DENY, ALL, "/**/\udcff*", (), 3),
        PathRule(Effect.READONLY, WRITE, "/**/@*", (), 4),
        PathRule(Effect.READONLY, WRITE, "/**/?locked", (), 5),
        PathRule(Effect.DENY, ALL, "/**/k*/below", (), 6),
    ]
    for chosen in (rules[:4], rules):  # with the last two every byte says something
        automaton = Automaton.build(chosen)
        parity.place(automaton, [tree.mounted_at("/")])
        quiet = ["quiet", "q", ".git", "x" * 16, "y" * 40]
        assert ask(parity, tree, "/srv" + "/quiet" * (depth - 1)).allowed == ALL
        for name in (".env", "\udcff", "@", "xlocked", "@" * 20, "k/below", ".en", "\udcfe", "?", "locked"):
            for place in sorted({0, 1, depth // 2, depth - 2, depth - 1}):
                if 0 <= place < depth:
                    names = [quiet[n % len(quiet)] for n in range(depth)]
                    names[place] = name
                    path = "/srv/" + "/".join(names)
                    assert not differences(automaton, path, ask(parity, tree, path)), path


# --- random rules, random trees ---------------------------------------------------------------------------------


def colliding(rules: Sequence[PathRule]) -> list[str]:
    """Names that are nearly, or exactly, what the rules name."""
    parts = {part for rule in rules for pattern in (rule.pattern, *rule.exceptions) for part in split(pattern)}
    names = set(NAMES)
    for part in sorted(parts - {"**"}):
        plain = part.replace("[!a]", "b").replace("[ab]", "a").replace("?", "x")
        for filler in ("", "b", "a" * 16, "\udc80"):
            names.add(plain.replace("*", filler))
        names |= {part, plain + "b", plain[:-1], (plain * 255)[:255], plain.ljust(17, "a")}
    return sorted(names - {"", ".", ".."})


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[PathRule], list[str]]:
    rules = draw(RULES)
    for part in draw(st.lists(COMPONENTS, min_size=1, max_size=3)):
        rules.append(PathRule(Effect.DENY, ALL, "/**/" + part.replace("**", "?x"), (), len(rules) + 1))
    names = st.sampled_from(colliding(rules))
    paths = draw(
        st.lists(st.lists(names, max_size=12).map(lambda parts: "/" + "/".join(parts)), min_size=8, max_size=24)
    )
    return rules, sorted({"/", *paths, *(above.rpartition("/")[0] or "/" for above in paths)})


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(worlds())
def test_random_rules_say_the_same_about_random_trees(parity: Parity, world: tuple[list[PathRule], list[str]]) -> None:
    rules, paths = world
    automaton = Automaton.build(rules)
    tree = Tree()
    try:
        parity.place(automaton, [tree.mounted_at("/")])
        seen = {path: ask(parity, tree, path) for path in paths}
    finally:
        tree.close()
    for path in paths:
        assert not differences(automaton, path, seen[path])
    states = {path: automaton.walk(path) for path in paths}
    for one, other in itertools.combinations(paths, 2):
        alike = automaton.same_below(states[one], states[other])
        assert alike == (seen[one].below == seen[other].below), (one, other)


@settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(worlds(), st.data())
def test_random_rules_say_the_same_about_what_has_several_names(
    parity: Parity, world: tuple[list[PathRule], list[str]], data: st.DataObject
) -> None:
    """Any name may allow; what a rule takes away from any name is taken away."""
    rules, paths = world
    automaton = Automaton.build(rules)
    points = st.sampled_from(["/", "/a", "/b/ab", "/zz", "/zz/a"])
    placed = data.draw(st.lists(st.tuples(points, st.sampled_from(paths)), min_size=1, max_size=3, unique=True))
    tree = Tree()
    try:
        parity.place(automaton, [tree.mounted_at(point, root) for point, root in placed])
        seen = {path: ask(parity, tree, path) for path in paths}
    finally:
        tree.close()
    for path in paths:
        below = [(point.rstrip("/"), path[len(root.rstrip("/")) :]) for point, root in placed if is_below(path, root)]
        names = {(point + "/" + rest.strip("/")).rstrip("/") or "/" for point, rest in below}
        decisions = [automaton.decision(automaton.walk(name)) for name in names]
        allowed = taken = Access.NONE
        for access, decision in itertools.product((READ, WRITE, EXECUTE), decisions):
            allowed |= access & decision.allowed
            taken |= access if access & ~decision.allowed and decision.rule(access) else Access.NONE
        if not names:
            assert (seen[path].detail, seen[path].allowed) == (_abi.MG_DETAIL_UNKNOWN, Access.NONE), path
            continue
        assert (seen[path].detail, seen[path].allowed, seen[path].protected) == (0, allowed & ~taken, taken), path
        assert seen[path].pinned or not any(decision.pinned for decision in decisions), path
        for index, access in enumerate((READ, WRITE, EXECUTE)):
            named = {
                decision.rule(access) for decision in decisions if access & taken and not access & decision.allowed
            }
            assert seen[path].rules[index] in (named - {0} or {0}), path


@pytest.mark.parametrize("seed", range(3))
def test_many_rules_over_random_bytes_say_the_same(parity: Parity, tree: Tree, seed: int) -> None:
    chance = random.Random(seed)
    alphabet = "ab.é\udcff -"

    def name(longest: int) -> str:
        return "a" + "".join(chance.choices(alphabet, k=chance.randint(0, longest)))

    def pattern() -> str:
        parts = [{0: "*" + name(3), 1: name(3) + "*", 2: "**"}.get(chance.randint(0, 9), name(3)) for _ in range(3)]
        return "/" + "/".join(parts[: chance.randint(1, 3)])

    rules = []
    for number in range(1, 200):
        effect = chance.choice(PATH_EFFECTS)
        exceptions = (pattern(),) if effect is Effect.DENY and number % 4 == 0 else ()
        access = ALL if effect is Effect.DENY else chance.choice([READ, WRITE, EXECUTE])
        rules.append(PathRule(effect, access, pattern(), exceptions, number))
    automaton = Automaton.build(rules)
    parity.place(automaton, [tree.mounted_at("/")])
    for _ in range(300):
        path = "/" + "/".join(name(chance.choice([3, 3, 40])) for _ in range(chance.randint(0, 9)))
        assert not differences(automaton, path, ask(parity, tree, path))


@pytest.mark.parametrize("rules", [1_000, 10_000])
def test_tables_of_many_pages_say_the_same(parity: Parity, tree: Tree, rules: int) -> None:
    made = [PathRule(Effect.ALLOW, ALL, f"/srv/store/number-{n:05d}/deeper", (), n) for n in range(1, rules)]
    automaton = Automaton.build([*made, PathRule(Effect.DENY, ALL, "/**/.env*", ("/**/.env.example",), rules)])
    parity.place(automaton, [tree.mounted_at("/")])
    chance = random.Random(rules)
    for number in (1, rules - 1, rules, *chance.sample(range(rules), 40)):
        for end in (
            "",
            "/deeper",
            "/deeper/x",
            "/deeper/.env.production",
            "/deeper/.env.example",
            "/deep",
            "/deeper-still",
        ):
            path = f"/srv/store/number-{number:05d}{end}"
            assert not differences(automaton, path, ask(parity, tree, path))


def test_nothing_is_left_of_a_session_that_was_killed_also_where_somebody_was_interrupted_at_that(
    parity: Parity, tree: Tree
) -> None:
    """Its pages go side by side, so some may be gone. The session beside it keeps all of its own."""
    rules = [PathRule(Effect.ALLOW, ALL, f"/srv/store/number-{n:05d}/deeper", (), n) for n in range(1, 4000)]
    automaton = Automaton.build(rules)
    each = _abi.MG_POLICIES_LIMIT // _abi.MG_SESSIONS_LIMIT
    tables = parity.map("mg_tables")

    def pages(policy: int) -> list[bytes]:
        keys = ((policy * _abi.MG_PAGES_LIMIT + page).to_bytes(4, sys.byteorder) for page in range(_abi.MG_PAGES_LIMIT))
        return [key for key in keys if tables.get(key, 4) is not None]

    def rows(policy: int) -> int:
        sizes = (("mg_roots", _abi.MG_ROOT_KEY.size), ("mg_branches", _abi.MG_BRANCH_KEY.size))
        keys = [key for name, size in sizes for key in parity.map(name).keys(size)]
        return sum(key[:4] == policy.to_bytes(4, sys.byteorder) for key in keys)

    killed, beside = each, 2 * each
    for policy in (killed, killed + 1, beside):
        parity.place(automaton, [tree.mounted_at("/")], policy)
    whole, kept = pages(beside), rows(beside)
    assert len(whole) > 2 and kept
    tables.delete(pages(killed)[1])
    guard._forget(cast("Engine", parity), 1)
    assert [(pages(policy), rows(policy)) for policy in range(killed, beside)] == [([], 0)] * each
    assert (pages(beside), rows(beside)) == (whole, kept)
    guard._forget(cast("Engine", parity), 2)
    assert (pages(beside), rows(beside)) == ([], 0)


@pytest.mark.parametrize("length", [15, 16, 17, 32, 33, 255])
@pytest.mark.parametrize("first", [".", "a"])
def test_names_of_every_length_say_the_same(parity: Parity, tree: Tree, length: int, first: str) -> None:
    """Names come in pieces, and whether one says anything at all shows at its beginning."""
    name = first + "b" * (length - 1)
    automaton = Automaton.build(
        [
            PathRule(Effect.ALLOW, ALL, "/w", (), 1),
            PathRule(Effect.DENY, ALL, "/w/**/.env", (), 2),
            PathRule(Effect.READONLY, Access.WRITE, "/**/*.b", (), 3),
            PathRule(Effect.DENY, ALL, f"/w/{name}/x", (), 4),
        ]
    )
    parity.place(automaton, [tree.mounted_at("/")])
    for last in (name, name[:-1] + "c", name[:-2] + ".b"):
        for path in (f"/w/{last}", f"/w/{last}/x", f"/w/{last}/.env", f"/w/d/{last}", f"/{last}/{last}/x"):
            assert not differences(automaton, path, ask(parity, tree, path))


def test_this_hosts_own_files_are_judged_alike_by_a_real_profile(parity: Parity, tmp_path: Path) -> None:
    """The places come from the mount table of the host, as in a session."""
    from mcpguard.policy.decide import automaton_of
    from mcpguard.session.policy import load_policy

    policy = load_policy("claude-code", str(tmp_path))
    automaton, mounted = automaton_of(policy.tables), mounts.visible(mounts.table())
    leading = {str(above) for mount in mounted for above in Path(mount.root).parents}
    # A namespace that is kept as a file: its own file system has no place in the policy, so that the kernel refuses it.
    kept = {mount.point for mount in mounted if not mount.root.startswith("/")}
    parity.write(table_plan(automaton, policy.tmp, mounted))
    asked = 0
    for top in ("/etc", "/usr/lib", policy.user.home, str(tmp_path), "/proc/self", "/dev", "/sys/kernel", "/run"):
        for path in itertools.islice(_everything(top), 600):
            try:
                fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
            except OSError:
                continue
            real = os.readlink(f"/proc/self/fd/{fd}")
            if (
                real.startswith("/")
                and real not in leading | kept
                and not real.endswith(" (deleted)")
                and not mounts.aliases(real, mounted)
            ):
                asked += 1
                assert not differences(automaton, real, parity.ask(fd))
            os.close(fd)
    assert asked > 1000


# --- two objects of one folder ----------------------------------------------------------------------------------


def assert_said_of_both(parity: Parity, fds: dict[str, int]) -> int:
    """Of two objects one walk says what two walks say, or nothing; of two folders always nothing. How many pairs it told."""
    told = 0
    singly = {path: parity.ask(fd, WRITE) for path, fd in fds.items()}
    for one, other in itertools.permutations(fds, 2):
        both = parity.ask_both(fds[one], fds[other])
        if both is not None:
            assert both == (singly[one], singly[other]), (one, other)
            assert os.path.dirname(one) == os.path.dirname(other), (one, other)
            told += 1
    return told


def siblings(paths: Iterable[str]) -> int:
    """Ordered pairs in one folder; a root is in none."""
    folders = [os.path.dirname(path) for path in paths if path != "/"]
    return sum(count * (count - 1) for count in Counter(folders).values())


@contextlib.contextmanager
def opened(tree: Tree, paths: Iterable[str]) -> Iterator[dict[str, int]]:
    fds = {path: tree.make(path) for path in paths}
    try:
        yield fds
    finally:
        for fd in fds.values():
            os.close(fd)


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(worlds(), st.data())
def test_one_walk_says_of_two_objects_of_a_folder_what_two_walks_say(
    parity: Parity, world: tuple[list[PathRule], list[str]], data: st.DataObject
) -> None:
    rules, paths = world
    beside = data.draw(st.lists(st.sampled_from(colliding(rules)), min_size=1, max_size=4))
    near = {os.path.join(os.path.dirname(path), name) for path in paths[-6:] for name in beside}
    paths = sorted({*paths[-12:], *near})
    automaton = Automaton.build(rules)
    tree = Tree()
    try:
        with opened(tree, paths) as fds:
            parity.place(automaton, [tree.mounted_at("/")])
            assert assert_said_of_both(parity, fds) == siblings(paths)
            points = st.sampled_from(["/", "/a", "/b/ab", "/zz", "/zz/a"])
            roots = st.sampled_from(sorted({"/", *(path for path in paths)}))
            placed = data.draw(st.lists(st.tuples(points, roots), min_size=1, max_size=3, unique=True))
            parity.place(automaton, [tree.mounted_at(point, root) for point, root in placed])
            assert_said_of_both(parity, fds)
    finally:
        tree.close()


@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 255])
@pytest.mark.parametrize("depth", [0, 1, 7, 8, 9, 16, 17, 40])
def test_one_walk_reads_two_names_of_every_length_at_every_depth(
    parity: Parity, tree: Tree, length: int, depth: int
) -> None:
    above = "/d" * depth
    names = [f"{above}/{first}{'n' * (length - 1)}" for first in ("a", "b", "c" if length == 1 else ".")]
    rules = [PathRule(Effect.ALLOW, WRITE, "/", (), 1), PathRule(Effect.READONLY, WRITE, names[0], (), 2)]
    rules.append(PathRule(Effect.DENY, ALL, "/**/.n*", (), 3))
    parity.place(Automaton.build(rules), [tree.mounted_at("/")])
    paths = [*names, f"{above}/other"]
    with opened(tree, paths) as fds:
        assert assert_said_of_both(parity, fds) == 12
        both = parity.ask_both(fds[names[0]], fds[f"{above}/other"])
        assert both is not None
        assert [seen.rules[1] for seen in both] == [2, 0]


def test_where_two_objects_are_not_alike_each_is_asked_by_itself(parity: Parity, tree: Tree) -> None:
    """In two folders, with names by other mounts, at and below a mount root, or too deep; and where nothing can be said."""
    paths = ("/", "/a", "/b", "/in/a", "/in/b", "/in/root", "/in/root/a", "/in/root/b", "/e/a", "/e/b")
    deep = ("/d" * 1023 + "/a", "/d" * 1023 + "/b", "/d" * 1024 + "/a", "/d" * 1024 + "/b")
    automaton = Automaton.build([PathRule(Effect.ALLOW, ALL, "/", (), 1), PathRule(Effect.DENY, ALL, "/x/a", (), 2)])
    with opened(tree, (*paths, *deep)) as fds:
        parity.place(automaton, [tree.mounted_at("/"), tree.mounted_at("/x", "/in/root")])
        told = {
            (one, other): parity.ask_both(fds[one], fds[other]) is not None
            for one, other in [
                *(("/a", "/b"), ("/in/a", "/in/b"), ("/in/root", "/in/a"), ("/in/root/a", "/in/root/b")),
                *(("/e/a", "/e/b"), ("/e/a", "/in/a"), ("/", "/a"), ("/a", "/"), deep[:2], deep[2:]),
            ]
        }
        assert [pair for pair, said in told.items() if said] == [("/e/a", "/e/b"), deep[:2]]
        assert_said_of_both(parity, {path: fds[path] for path in paths})
        assert parity.ask_both(fds["/e/a"], fds["/e/b"], index=_abi.MG_POLICIES_LIMIT - 1) is None
        parity.place(automaton, [])
        assert parity.ask_both(fds["/e/a"], fds["/e/b"]) is None, "a file system that came later"


def _everything(top: str) -> Iterator[str]:
    for folder, _, files in os.walk(top):
        yield folder
        yield from (os.path.join(folder, name) for name in files)


# --- where things are mounted -----------------------------------------------------------------------------------


def in_private_mounts(work: Callable[[Path], None], base: Path) -> None:
    """Run `work` in a process with mounts of its own; its failure is the caller's."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = b""
        try:
            mounts.enter_private_namespace()
            mounts.mount_tmpfs(str(base), "mode=755")
            work(base)
        except BaseException:
            said = traceback.format_exc().encode(errors="replace")
        os.write(writer, said[-60000:])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    assert not said, said


def bind(source: Path, target: Path) -> None:
    result = syscalls.libc.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(MS_BIND), None)
    assert result == 0, os.strerror(ctypes.get_errno())


def folder(*paths: Path) -> None:
    for path in paths:
        path.mkdir(parents=True, exist_ok=True)


def look(parity: Parity, path: Path) -> Seen:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        return parity.ask(fd)
    finally:
        os.close(fd)


def device_number(path: Path) -> int:
    return mounts.device_number("{}:{}".format(*(f(os.lstat(path).st_dev) for f in (os.major, os.minor))))


def test_a_rule_on_either_name_of_a_directory_counts_and_a_deny_wins(parity: Parity, tmp_path: Path) -> None:
    def work(base: Path) -> None:
        folder(base / "one/sub", base / "two", base / "else")
        bind(base / "one", base / "two")
        rules = [
            PathRule(Effect.ALLOW, READ, f"{base}/one", (), 1),
            PathRule(Effect.ALLOW, EXECUTE, f"{base}/two", (), 2),
            PathRule(Effect.DENY, ALL, f"{base}/two/sub", (), 3),
            PathRule(Effect.READONLY, WRITE, f"{base}/one", (), 4),
        ]
        parity.place(Automaton.build(rules), mounts.table())
        for name in ("one", "two"):
            seen = look(parity, base / name)
            assert (seen.allowed, seen.protected, seen.rules, seen.pinned) == (READ | EXECUTE, WRITE, (0, 4, 0), True)
            below = look(parity, base / name / "sub")
            assert (below.allowed, below.protected, below.rules) == (Access.NONE, ALL, (3, 3, 3))
            assert seen.device == device_number(base)
            (base / name / "new").touch()
            assert look(parity, base / name / "new").allowed == READ | EXECUTE
            (base / name / "new").unlink()
        assert look(parity, base / "else").allowed == Access.NONE

    in_private_mounts(work, tmp_path)


def test_a_rule_on_either_name_of_a_file_counts(parity: Parity, tmp_path: Path) -> None:
    def work(base: Path) -> None:
        folder(base / "deep/er")
        for name in ("deep/er/file", "target", "deep/er/other"):
            (base / name).touch()
        bind(base / "deep/er/file", base / "target")
        rules = [
            PathRule(Effect.ALLOW, ALL, f"{base}/deep", (), 1),
            PathRule(Effect.DENY, ALL, f"{base}/target", (), 2),
        ]
        parity.place(Automaton.build(rules), mounts.table())
        for name in ("deep/er/file", "target"):
            seen = look(parity, base / name)
            assert (seen.allowed, seen.rules) == (Access.NONE, (2, 2, 2)), name
        assert look(parity, base / "deep/er/other").allowed == ALL

    in_private_mounts(work, tmp_path)


def test_of_a_file_system_only_what_is_mounted_is_known(parity: Parity, tmp_path: Path) -> None:
    """As with a subvolume, or what a container shows of its host."""

    def work(base: Path) -> None:
        folder(base / "whole", base / "part")
        mounts.mount_tmpfs(str(base / "whole"), "mode=755")
        folder(base / "whole/@home/user", base / "whole/@other")
        outside = os.open(base / "whole/@other", os.O_PATH)
        between = os.open(base / "whole/@home", os.O_PATH)
        bind(base / "whole/@home/user", base / "part")
        syscalls.libc.umount2(os.fsencode(base / "whole"), MNT_DETACH)
        folder(base / "part/docs")
        automaton = Automaton.build(
            [PathRule(Effect.ALLOW, ALL, "/", (), 1), PathRule(Effect.DENY, ALL, f"{base}/part/docs", (), 2)]
        )
        parity.place(automaton, mounts.table())
        for name in ("part", "part/docs"):
            assert not differences(automaton, str(base / name), look(parity, base / name))
        assert look(parity, base / "part").device == device_number(base / "part") != device_number(base)
        for fd in (outside, between):
            seen = parity.ask(fd)
            assert (seen.allowed, seen.detail) == (Access.NONE, _abi.MG_DETAIL_UNKNOWN)
            assert mounts.device_number(device_of(fd)) == seen.device

    in_private_mounts(work, tmp_path)


def _but_for_pins(automaton: Automaton, path: str, seen: Seen) -> Seen:
    """What leads to a mount root is pinned, which the automaton does not know."""
    return replace(seen, pinned=automaton.decision(automaton.walk(path)).pinned)


def test_a_file_system_that_came_later_is_refused(parity: Parity, tmp_path: Path, tree: Tree) -> None:
    parity.place(Automaton.build([PathRule(Effect.ALLOW, ALL, "/", (), 1)]), mounts.table())
    seen = parity.ask(tree.fd)
    assert (seen.allowed, seen.detail) == (Access.NONE, _abi.MG_DETAIL_UNKNOWN)
    assert seen.device == mounts.device_number(tree.device)


@pytest.mark.parametrize("length", (1, 31, 32, 33, 48, 63, 64, 65, 96, 97, 200, 254, 255))
def test_names_of_any_length_lead_to_a_mount_root(parity: Parity, tree: Tree, length: int) -> None:
    name, near = "n" * length, "n" * (length - 1) + "m"
    rules = [PathRule(Effect.ALLOW, READ, "/", (), 1), PathRule(Effect.DENY, ALL, "/second/x", (), 2)]
    automaton = Automaton.build(rules)
    for path in (f"/up/{name}/root/x", f"/up/{near}/root/x", f"/up/{name}/rooty/x", f"/up/{name}/x"):
        os.close(tree.make(path))
    parity.place(automaton, [tree.mounted_at("/"), tree.mounted_at("/second", f"/up/{name}/root")])
    assert ask(parity, tree, f"/up/{name}/root/x").rules == (2, 2, 2)
    for path in (f"/up/{near}/root/x", f"/up/{name}/rooty/x", f"/up/{name}/x", f"/up/{near}"):
        assert not differences(automaton, path, _but_for_pins(automaton, path, ask(parity, tree, path)))


@pytest.mark.parametrize("shared", (16, 32, 40, 64, 96, 160))
def test_long_names_that_begin_alike_lead_to_mount_roots_of_their_own(parity: Parity, tree: Tree, shared: int) -> None:
    names = ["n" * shared + "a" * 20, "n" * shared + "b" * 20]
    rules = [PathRule(Effect.ALLOW, READ, "/", (), 1)]
    rules += [PathRule(Effect.DENY, ALL, f"/mounted{number}/x", (), number + 2) for number in range(2)]
    mounted = [tree.mounted_at(f"/mounted{number}", f"/{name}") for number, name in enumerate(names)]
    parity.place(Automaton.build(rules), [tree.mounted_at("/"), *mounted])
    assert [ask(parity, tree, f"/{name}/x").rules[0] for name in names] == [2, 3]
    assert [ask(parity, tree, f"/{name}/y").allowed for name in names] == [READ, READ]


@pytest.mark.parametrize("count", (2, 4, 5, 9))
def test_a_deny_on_any_of_many_names_of_one_place_counts(parity: Parity, tree: Tree, count: int) -> None:
    """With more names than are judged, everything is refused where they differ."""
    rules = [PathRule(Effect.ALLOW, READ, f"/name{number}", (), 1) for number in range(count)]
    mounted = [tree.mounted_at(f"/name{number}") for number in range(count)]
    for last in range(count):
        parity.place(Automaton.build([*rules, PathRule(Effect.DENY, ALL, f"/name{last}/x", (), 2)]), mounted)
        assert ask(parity, tree, "/x").allowed == Access.NONE
        seen = ask(parity, tree, "/y")
        if count <= _abi.MG_NAMES_LIMIT:
            assert (seen.allowed, seen.detail) == (READ, 0)


def test_more_names_than_are_judged_are_refused(parity: Parity, tree: Tree) -> None:
    points = [f"/name{number}" for number in range(_abi.MG_NAMES_LIMIT + 1)]
    automaton = Automaton.build(
        [PathRule(Effect.ALLOW, READ, point, (), number) for number, point in enumerate(points, 1)]
    )
    parity.place(automaton, [tree.mounted_at(point) for point in points[:-1]])
    assert (ask(parity, tree, "/x").allowed, ask(parity, tree, "/x").detail) == (READ, 0)
    parity.place(automaton, [tree.mounted_at(point) for point in points])
    seen = ask(parity, tree, "/x")
    assert (seen.allowed, seen.detail) == (Access.NONE, _abi.MG_DETAIL_NAMES)


def test_names_that_no_rule_tells_apart_are_one(parity: Parity, tree: Tree) -> None:
    automaton = Automaton.build([PathRule(Effect.ALLOW, READ, "/shown", (), 1)])
    points = ["/shown", *(f"/hidden{number}" for number in range(20))]
    parity.place(automaton, [tree.mounted_at(point) for point in reversed(points)])
    assert (ask(parity, tree, "/x").allowed, ask(parity, tree, "/x").detail) == (READ, 0)


def test_names_by_several_mounts_on_the_way_are_counted_together(parity: Parity, tree: Tree) -> None:
    rules = [PathRule(Effect.ALLOW, READ, "/", (), 1)]
    rules += [PathRule(Effect.DENY, ALL, f"/m{number}/x", (), 2 + number) for number in range(3)]
    mounted = [tree.mounted_at("/"), *(tree.mounted_at(f"/m{number}", "/a" * (number + 1)) for number in range(3))]
    parity.place(Automaton.build(rules), mounted)
    for number in range(3):
        assert ask(parity, tree, "/a" * (number + 1) + "/x").rules[0] == 2 + number
    assert ask(parity, tree, "/a/a/a/y").allowed == READ


def test_a_directory_that_is_mounted_on_itself_has_one_name(parity: Parity, tree: Tree) -> None:
    automaton = Automaton.build([PathRule(Effect.ALLOW, READ, "/a", (), 1), PathRule(Effect.DENY, ALL, "/b", (), 2)])
    alone = [tree.mounted_at("/")]
    plan = table_plan(automaton, "/tmp", alone)
    assert table_plan(automaton, "/tmp", [*alone, tree.mounted_at("/a/b", "/a/b"), tree.mounted_at("/a", "/a")]) == plan
    second = [tree.mounted_at("/c", "/a"), tree.mounted_at("/c/b", "/a/b")]
    assert table_plan(automaton, "/tmp", [*alone, *second]) == table_plan(automaton, "/tmp", [*alone, second[0]])


@pytest.mark.parametrize("depth", (1, 6, 7, 8, 9, 15, 16, 17, 24, 31, 40, 100))
def test_all_names_of_what_lies_deep_are_read(parity: Parity, tree: Tree, depth: int) -> None:
    parts = [f"d{number}" for number in range(depth)]
    path = "/" + "/".join(parts)
    rules = [PathRule(Effect.ALLOW, ALL, "/", (), 1)]
    for at in range(depth):
        below = "/".join(parts[: at + 1])
        denies = [PathRule(Effect.DENY, ALL, f"/{root}/{below}", (), 2) for root in ("one", "two")]
        for deny in denies if at in (0, depth // 2, depth - 1) else ():
            parity.place(Automaton.build([*rules, deny]), [tree.mounted_at("/one"), tree.mounted_at("/two")])
            assert ask(parity, tree, path).rules == (2, 2, 2), deny
            assert ask(parity, tree, path + "x").allowed == (ALL if at == depth - 1 else Access.NONE), deny


def test_what_leads_to_a_mount_root_cannot_move_unseen(parity: Parity, tree: Tree) -> None:
    """The rules on the second name of what lies below would lose hold of it."""
    rules = [PathRule(Effect.ALLOW, ALL, "/", (), 1), PathRule(Effect.DENY, ALL, "/shown", (), 2)]
    automaton = Automaton.build(rules)
    parity.place(automaton, [tree.mounted_at("/"), tree.mounted_at("/shown", "/data/in/root")])
    for path in ("/data", "/data/in"):
        seen = ask(parity, tree, path)
        assert (seen.allowed, seen.pinned) == (ALL, True)
        assert seen.below != ask(parity, tree, "/other").below
    assert not ask(parity, tree, "/other").pinned
    assert ask(parity, tree, "/other").below == ask(parity, tree, "/data/other").below
    assert ask(parity, tree, "/data/in/root").rules == (2, 2, 2)


# --- broken tables, moving names --------------------------------------------------------------------------------


def test_broken_tables_end_and_allow_nothing_where_there_are_none(parity: Parity, tree: Tree) -> None:
    chance = random.Random(3)
    device = mounts.device_number(tree.device)
    deep = tree.make("/abcdefgh" * 40 + "/" + "n" * 255)
    shallow, beside = tree.make("/a"), tree.make("/b")

    def numbers(count: int, below: int) -> bytes:
        small = chance.random() < 0.7
        return struct.pack(
            f"={count}I", *(chance.randrange(below) if small else chance.getrandbits(32) for _ in range(count))
        )

    for _ in range(120):
        lines = chance.choice([1, 2, 7, 64, 400])
        factors = chance.choice([0, 1, 3, 8, 9, 200, 256, 1 << 32 - 1])
        masks = tuple(chance.getrandbits(64) for _ in range(3))
        head = encode.policy_head(
            masks, factors, *(chance.randrange(2 * lines) for _ in range(3)), telling=chance.getrandbits(256)
        )
        places = [numbers(_abi.MG_PLACE.size // 4, 2 * lines) for _ in range(6)]
        names = [encode.root_key(0, device, number)[4:] for number in range(3)]
        nodes = [encode.branch_key(0, device, node, b"abcdefgh")[4:] for node in range(3)]
        roots = b"".join(key + place for key, place in zip(names, places, strict=False))
        branches = b"".join(key + place for key, place in zip(nodes, places[3:], strict=True))
        parity.write(TablePlan(numbers(4 * lines, 2 * lines), head, roots, branches, b"", b""))
        assert_said_of_both(parity, {"/a": shallow, "/b": beside})
        for fd in (deep, shallow, tree.fd):
            seen = parity.ask(fd)
            assert factors or (seen.allowed, seen.detail) == (Access.NONE, _abi.MG_DETAIL_NO_POLICY)
            assert not seen.detail or not seen.allowed
    for fd in (deep, shallow, beside):
        os.close(fd)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/p/open/d", "/p/shut/d"),
        ("/p/" + "o" * 60, "/p/" + "s" * 60),
        ("/p/o", "/p/q/q/q/q/q/q/q/q/q/s"),
        ("/p/oooo", "/p/ssss"),
    ],
    ids=("between directories", "long names", "deeper", "short names"),
)
def test_while_a_directory_moves_the_answer_is_that_of_one_of_its_names(
    parity: Parity, tree: Tree, one: str, other: str
) -> None:
    """A mixture of both names would be allowed to execute."""
    rules = [
        PathRule(Effect.ALLOW, EXECUTE, "/", (), 1),
        PathRule(Effect.DENY, ALL, other, (), 2),
        PathRule(Effect.ALLOW, READ, one, (), 3),
        PathRule(Effect.DENY, ALL, "/p", (one, other), 4),
    ]
    automaton = Automaton.build(rules)
    parity.place(automaton, [tree.mounted_at("/")])
    os.close(tree.make(os.path.dirname(one)))
    os.close(tree.make(os.path.dirname(other)))
    file, beside = tree.make(f"{one}/below/it/f"), tree.make(f"{one}/below/it/g")
    expected, expected_of_write = set(), set()
    for path in (one, other):
        decision = automaton.decision(automaton.walk(path))
        refused = tuple(0 if access & decision.allowed else decision.rule(access) for access in (READ, WRITE, EXECUTE))
        expected.add((decision.allowed, refused))
        expected_of_write.add((decision.allowed, (0, refused[1], 0)))
    pid = os.fork()
    if pid == 0:
        for number in itertools.count():
            here, there = (one, other) if number % 2 == 0 else (other, one)
            os.rename(here[1:], there[1:], src_dir_fd=tree.fd, dst_dir_fd=tree.fd)
    try:
        met, unsure, told = set(), 0, 0
        for _ in range(20000):
            both = parity.ask_both(file, beside)
            if both is not None:
                told += 1
                assert [(seen.allowed, seen.rules) for seen in both] == [(both[0].allowed, both[0].rules)] * 2
                assert (both[0].allowed, both[0].rules) in expected_of_write
            seen = parity.ask(file)
            if seen.detail:
                assert (seen.allowed, seen.detail) == (Access.NONE, _abi.MG_DETAIL_UNSTABLE)
                unsure += 1
            else:
                met.add((seen.allowed, seen.rules))
        assert met <= expected
        assert unsure < 20000
        assert told, "of two objects of a folder something is said"
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "nothing moved any more"
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(file)
        os.close(beside)
