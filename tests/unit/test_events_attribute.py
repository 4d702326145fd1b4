"""Which refused path calls are our denials, on real files."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from events_help import AGENT, ALL, forked, head, make_policy, opened, refused

from mcpguard.events.attribute import CHANGE_OUTSIDE, OTHER_TERMINALS, Attributor
from mcpguard.events.finding import NOT_STOPPED, NOT_THERE, QUIET, UNEXPLAINED, Finding
from mcpguard.events.judge import Judge
from mcpguard.events.processes import ProcessTable
from mcpguard.model.access import Access, Effect, Verdict
from mcpguard.model.event import Kind
from mcpguard.model.policy import PathRule, User
from mcpguard.model.profile import SystemSwitches
from mcpguard.policy.automaton import Automaton
from mcpguard.wire.records import OUTSIDER, FileRecord, OpenRecord, PathCallRecord

READ, WRITE, EXECUTE = Access.READ, Access.WRITE, Access.EXECUTE
OTHER_UID = os.geteuid() + 4321


class Place:
    """A folder that everybody may reach, and a policy that opens it but `secret`, `ro` and `.git/hooks`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uid, self.gid, self.groups = os.geteuid(), os.getegid(), tuple(os.getgroups())
        self.audit = False
        self.system = SystemSwitches()
        self.rules: list[tuple[Effect, Access, str]] = []
        self.table = ProcessTable(AGENT)

    def judge(self, record: PathCallRecord) -> Finding | None:
        return self._attributor().path_call(record)

    def opened(self, record: OpenRecord) -> Finding:
        return self._attributor().opened(record)

    def executed(self, path: str | Path) -> Finding:
        return self._attributor().executed(str(path))

    def refused_by_hook(self, record: FileRecord) -> Finding:
        return self._attributor().refused_by_hook(record)

    def _attributor(self) -> Attributor:
        rules = [
            (Effect.ALLOW, ALL, str(self.root)),
            (Effect.DENY, ALL, f"{self.root}/secret"),
            (Effect.READONLY, WRITE, f"{self.root}/ro"),
            (Effect.READONLY, WRITE, f"{self.root}/.git/hooks"),
            (Effect.ALLOW, READ, "/proc"),
            (Effect.ALLOW, READ, f"{self.root.parent}/readable"),
            (Effect.DENY, ALL, "/**/.env"),
            (Effect.READONLY, WRITE, f"{self.root}/**/.husky"),
            *self.rules,
        ]
        user = User(self.uid, self.gid, self.groups, "somebody", "/nowhere")
        policy = replace(make_policy(*rules, user=user, audit=self.audit), system=self.system)
        return Attributor(policy, Judge(Automaton.from_bytes(policy.tables), policy.paths), self.table)

    def become_stranger(self) -> None:
        self.uid, self.gid, self.groups = OTHER_UID, OTHER_UID, ()


@pytest.fixture
def place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="mcpguard-attribute-")).resolve()
    folder.chmod(0o755)
    root = folder / "work"
    for name in ("secret", "ro", ".git/hooks", "free"):
        (root / name).mkdir(parents=True)
    (root / "secret" / "key").write_text("k")
    (root / "ro" / "file").write_text("r")
    (root / "free" / "file").write_text("f")
    yield Place(root)
    (root / "free").chmod(0o755)
    shutil.rmtree(folder)


def rule_text(found: Finding | None) -> str:
    assert found is not None and found.rule is not None, found
    return found.rule.text


def test_a_refused_read_below_a_deny_rule_names_that_rule(place: Place) -> None:
    found = place.judge(refused("open", place.root / "secret/key", errno.EACCES))
    assert found is not None
    assert (found.verdict, found.kind, found.access) == (Verdict.DENY, Kind.FILE, "read")
    assert (found.path, rule_text(found)) == (f"{place.root}/secret/key", f"deny: {place.root}/secret")


def test_a_refused_path_that_no_rule_names_is_denied_by_the_default(place: Place) -> None:
    assert rule_text(place.judge(refused("open", "/etc/hostname", errno.EACCES))) == "default: deny"


def test_a_folder_that_a_rule_allows_but_that_was_not_there_is_advice_and_no_alarm() -> None:
    rules = [PathRule(Effect.ALLOW, READ | WRITE, "/var/none-of-this/.tool", (), 1)]
    policy = make_policy((Effect.ALLOW, READ | WRITE, "/var/none-of-this/.tool"))
    judge = Judge(Automaton.build(rules), rules)
    attributor = Attributor(policy, judge, ProcessTable(AGENT))
    found = attributor.path_call(refused("mkdir", "/var/none-of-this/.tool", errno.EROFS, access=WRITE, follow=False))
    assert found is not None and found.detail is not None
    assert (found.verdict, rule_text(found)) == (Verdict.DENY, "allow: /var/none-of-this/.tool")
    assert found.detail.startswith(NOT_THERE) and found.detail.startswith(QUIET)
    inside = attributor.path_call(refused("open", "/var/none-of-this/.tool/x", errno.EROFS, access=WRITE))
    assert inside is None or not (inside.detail or "").startswith(QUIET), (
        "a refusal in a writable folder is never quiet"
    )


@pytest.mark.parametrize(
    "way", ["/w/secret/k", "/w/./secret/k", "/w//secret/k", "/w/a/../secret/k", "/w/secret/k/", "/w/secret/."]
)
def test_a_path_is_judged_alike_however_it_is_spelt(way: str) -> None:
    rules = (PathRule(Effect.ALLOW, ALL, "/w", (), 1), PathRule(Effect.DENY, ALL, "/w/secret", (), 2))
    judge = Judge(Automaton.build(rules), rules)
    assert judge.answer("/w/other", READ) == (Access.NONE, 1), "the control"
    assert judge.answer(way, READ) == (READ, 2)


def test_only_the_refused_part_of_an_access_is_reported(place: Place) -> None:
    found = place.judge(refused("open", place.root / "ro/file", errno.EROFS, access=READ | WRITE))
    assert found is not None
    assert (found.access, rule_text(found)) == ("write", f"readonly: {place.root}/ro")


@pytest.mark.parametrize("error", [errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.ENOSPC, errno.ELOOP])
def test_an_ordinary_error_is_not_ours_even_on_a_denied_path(place: Place, error: int) -> None:
    assert place.judge(refused("open", place.root / "secret/key", error)) is None


def test_a_symlink_in_the_workspace_is_judged_by_what_it_points_to(place: Place) -> None:
    (place.root / "innocent").symlink_to("secret/key")
    assert rule_text(place.judge(refused("open", place.root / "innocent", errno.EACCES))).endswith("/secret")


def test_a_symlink_itself_is_judged_when_the_call_does_not_follow(place: Place) -> None:
    (place.root / "free" / "innocent").symlink_to("../secret/key")
    found = place.judge(refused("unlink", place.root / "free/innocent", errno.EACCES, access=WRITE, follow=False))
    assert found is not None and found.rule is None, (
        "the link lies in the open, and the bits do not explain the refusal"
    )


def test_a_symlink_that_was_swapped_away_is_still_reported(place: Place) -> None:
    # At the call it pointed into secret/; now it is gone, and nothing is left that explains EACCES.
    found = place.judge(refused("open", place.root / "free/swapped", errno.EACCES))
    assert found is not None
    assert (found.verdict, found.rule, found.detail) == (Verdict.DENY, None, UNEXPLAINED)


def test_proc_self_root_does_not_hide_the_object(place: Place) -> None:
    found = place.judge(refused("open", f"/proc/self/root{place.root}/secret/key", errno.EACCES))
    assert found is not None and found.path == f"{place.root}/secret/key"


def test_each_path_is_told_by_the_descriptor_that_it_names_itself(place: Place) -> None:
    """The process has ended: what the kernel told with the call is all that there is."""
    free, kept, gone = str(place.root / "free"), str(place.root / "ro"), head(4_194_303, AGENT.pid)
    to = {"access": WRITE, "path2": "/proc/self/fd/8/new", "follow": False, "who": gone}
    both = replace(refused("rename", "/proc/self/fd/7/file", errno.EROFS, base=free, **to), base2=kept)  # type: ignore[arg-type]
    found = place.judge(both)
    assert found is not None and (found.path, found.target) == (f"{free}/file", f"{kept}/new")
    one = replace(refused("rename", "file", errno.EROFS, base=kept, **to), base2="")  # type: ignore[arg-type]
    found = place.judge(one)
    assert found is not None and (found.path, found.target) == (f"{kept}/file", "/proc/4194303/fd/8/new")


@pytest.mark.parametrize("path", ["fd/7/../x", "fd/7/fd/8/key", "fd/7/.././../x"])
def test_a_refusal_by_a_descriptor_that_nobody_can_read_any_more_is_told_as_it_was_given(
    place: Place, path: str
) -> None:
    """The kernel tells only what the first descriptor of an absolute name stood for."""
    who = head(4_194_303, AGENT.pid)
    place.table.seen(who)
    found = place.judge(refused("open", path, errno.EACCES, base="/proc/4194303", who=who))
    assert found is not None
    assert (found.path, found.rule, found.detail) == (f"/proc/4194303/{path}", None, UNEXPLAINED)


def test_a_relative_path_is_joined_with_its_folder(place: Place) -> None:
    found = place.judge(refused("open", "../secret/key", errno.EACCES, base=str(place.root / "free")))
    assert found is not None and found.path == f"{place.root}/secret/key"


# Plain permissions are not ours.


def test_a_file_of_mode_000_explains_a_refusal_to_anybody_without_capabilities(place: Place) -> None:
    file = place.root / "free/file"
    file.chmod(0)
    assert place.judge(refused("open", file, errno.EACCES)) is None


def test_a_file_of_another_user_explains_a_refusal(place: Place) -> None:
    (place.root / "free/file").chmod(0o600)
    place.become_stranger()
    assert place.judge(refused("open", place.root / "free/file", errno.EACCES)) is None


def test_a_group_of_the_user_counts(place: Place) -> None:
    file = place.root / "free/file"
    file.chmod(0o640)
    place.become_stranger()
    place.groups = (file.stat().st_gid,)
    found = place.judge(refused("open", file, errno.EACCES))
    assert found is not None and found.detail == UNEXPLAINED
    assert place.judge(refused("open", file, errno.EACCES, access=WRITE)) is None


def test_a_folder_that_may_not_be_searched_explains_a_refusal(place: Place) -> None:
    (place.root / "free").chmod(0o700)
    place.become_stranger()
    assert place.judge(refused("open", place.root / "free/file", errno.EACCES)) is None


def test_bits_that_permit_the_access_leave_the_refusal_to_the_sandbox(place: Place) -> None:
    found = place.judge(refused("open", place.root / "free/file", errno.EACCES))
    assert found is not None
    assert (found.verdict, found.rule, found.detail) == (Verdict.DENY, None, UNEXPLAINED)


def test_an_access_list_explains_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.become_stranger()
    (place.root / "free/file").chmod(0o600)
    monkeypatch.setattr(os, "getxattr", lambda path, name, follow_symlinks: b"an access list")
    found = place.judge(refused("open", place.root / "free/file", errno.EACCES))
    assert found is not None and found.detail == UNEXPLAINED


@pytest.mark.parametrize("op", ["create", "mkdir", "symlink", "open"])
def test_a_folder_without_write_permission_explains_a_refused_new_name(place: Place, op: str) -> None:
    (place.root / "free").chmod(0o555)
    assert place.judge(refused(op, place.root / "free/new", errno.EACCES, access=WRITE)) is None


def test_a_folder_without_write_permission_explains_a_refused_removal(place: Place) -> None:
    (place.root / "free").chmod(0o555)
    assert place.judge(refused("unlink", place.root / "free/file", errno.EACCES, access=WRITE)) is None


def test_a_sticky_folder_explains_a_refused_removal_of_anothers_file(place: Place) -> None:
    (place.root / "free").chmod(0o1777)
    place.become_stranger()
    assert place.judge(refused("unlink", place.root / "free/file", errno.EPERM, access=WRITE)) is None


def test_only_the_owner_may_chmod(place: Place) -> None:
    found = place.judge(refused("chmod", place.root / "free/file", errno.EPERM, access=WRITE))
    assert found is not None and found.detail == UNEXPLAINED
    place.become_stranger()
    assert place.judge(refused("chmod", place.root / "free/file", errno.EPERM, access=WRITE)) is None


@pytest.mark.parametrize("op", ["chown", "mknod"])
def test_what_needs_a_capability_is_refused_to_everybody(place: Place, op: str) -> None:
    assert place.judge(refused(op, place.root / "free/file", errno.EPERM, access=WRITE)) is None


def test_a_program_without_its_execute_bit_explains_a_refused_exec(place: Place) -> None:
    file = place.root / "free/file"
    file.chmod(0o644)
    assert place.judge(refused("exec", file, errno.EACCES, access=EXECUTE)) is None
    file.chmod(0o755)
    found = place.judge(refused("exec", file, errno.EACCES, access=EXECUTE))
    assert found is not None and found.kind is Kind.EXEC


def test_a_read_only_file_system_explains_erofs_and_a_writable_one_does_not(place: Place) -> None:
    found = place.judge(refused("open", place.root / "free/file", errno.EROFS, access=WRITE))
    assert found is not None and found.detail == UNEXPLAINED


def test_another_file_system_is_not_ours_unless_the_policy_refuses(place: Place) -> None:
    free, ro = place.root / "free/file", place.root / "ro/file"
    assert place.judge(refused("rename", free, errno.EXDEV, access=WRITE, path2=place.root / "x", follow=False)) is None
    found = place.judge(refused("rename", ro, errno.EXDEV, access=WRITE, path2=place.root / "x", follow=False))
    assert rule_text(found).endswith("/ro")


def test_a_rename_to_another_mount_may_have_been_of_a_file(place: Place) -> None:
    source, target = place.root / "free/it", place.root.parent / "readable/it"
    place.rules = [(Effect.ALLOW, ALL, f"{place.root.parent}/readable")]

    def found(path: Path, error: int = errno.EXDEV, op: str = "rename") -> Finding:
        # As the kernel tells an absolute path: it began nowhere.
        finding = place.judge(refused(op, path, error, access=WRITE, base="", path2=target, follow=False))
        assert finding is not None and finding.detail == "a protected path lies below it"
        return finding

    assert found(source).unsure
    assert not found(source, errno.EACCES).unsure
    assert not found(source, op="exchange").unsure
    # Where a link leads to can be changed before it is looked at.
    (place.root / "link").symlink_to(place.root / "free")
    assert not found(place.root / "link/it").unsure
    assert not found(place.root / "link/../free/it").unsure
    assert found(place.root / "ro/../free/it").unsure[-2:] == (str(place.root / "free"), str(source))


def test_a_protected_mount_point_that_is_busy_is_ours(place: Place) -> None:
    found = place.judge(refused("rmdir", place.root / ".git/hooks", errno.EBUSY, access=WRITE, follow=False))
    assert rule_text(found).endswith(".git/hooks")


# Two ends.


def test_a_rename_onto_a_protected_name_is_decided_by_the_new_name(place: Place) -> None:
    found = place.judge(
        refused(
            "rename", place.root / "free/file", errno.EACCES, access=WRITE, path2=place.root / "ro/file", follow=False
        )
    )
    assert found is not None
    assert rule_text(found).endswith("/ro")
    assert (found.path, found.target) == (f"{place.root}/free/file", f"{place.root}/ro/file")
    assert found.detail == f"decided by {place.root}/ro/file"


def test_moving_a_folder_away_from_above_a_protected_path_is_denied_by_that_paths_rule(place: Place) -> None:
    found = place.judge(
        refused("rename", place.root / ".git", errno.EACCES, access=WRITE, path2=place.root / "git2", follow=False)
    )
    assert rule_text(found).endswith(".git/hooks")
    assert found is not None and found.detail == "a protected path lies below it"


def test_a_link_that_opens_a_file_wider_is_denied_by_the_files_own_rule(place: Place) -> None:
    found = place.judge(
        refused("link", place.root / "ro/file", errno.EXDEV, access=WRITE, path2=place.root / "free/new", follow=False)
    )
    assert rule_text(found).endswith("/ro")
    assert found is not None and found.detail == "the new name would open the file wider"


def test_a_link_inside_the_open_is_not_ours(place: Place) -> None:
    record = refused(
        "link", place.root / "free/file", errno.EXDEV, access=WRITE, path2=place.root / "free/new", follow=False
    )
    assert place.judge(record) is None


# Processes.


def test_another_processs_environment_is_a_quiet_denial(place: Place) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        found = place.judge(refused("open", f"/proc/{sleeper.pid}/environ", errno.EACCES))
    finally:
        sleeper.kill()
        sleeper.wait()
    assert found is not None and found.detail is not None
    assert found.verdict is Verdict.DENY
    assert found.detail.startswith(QUIET)
    assert rule_text(found).startswith("system: ")


def test_a_history_file_is_quiet_only_where_no_rule_speaks_of_it() -> None:
    history = "/root/.bash_history"
    for rules, quiet in (((), True), (((Effect.DENY, ALL, history),), False)):
        policy = make_policy((Effect.ALLOW, ALL, "/ws"), *rules)
        judge = Judge(Automaton.from_bytes(policy.tables), policy.paths)
        table = ProcessTable(replace(AGENT, exe="/usr/bin/bash"))
        found = Attributor(policy, judge, table).path_call(refused("open", history, errno.EACCES, access=WRITE))
        assert found is not None and found.verdict is Verdict.DENY
        assert (found.detail or "").startswith(QUIET) is quiet


def test_another_processs_memory_is_a_loud_denial(place: Place) -> None:
    found = place.judge(refused("open", f"/proc/{os.getppid()}/mem", errno.EACCES, access=READ | WRITE))
    assert found is not None and not (found.detail or "").startswith(QUIET)


def test_the_environment_of_another_users_process_is_refused_to_everybody(place: Place) -> None:
    place.become_stranger()
    assert place.judge(refused("open", f"/proc/{os.getpid()}/environ", errno.EACCES)) is None


def test_a_look_into_the_own_tree_is_not_ours(place: Place) -> None:
    place.table.forked(forked(os.getpid()))
    assert place.judge(refused("open", f"/proc/{os.getpid()}/environ", errno.EACCES)) is None


# What went through.


def test_a_change_of_a_protected_name_that_succeeded_is_on_record_as_not_stopped(place: Place) -> None:
    found = place.judge(refused("create", place.root / ".git/hooks/pre-commit", 0, access=WRITE))
    assert found is not None
    assert (found.verdict, rule_text(found)) == (Verdict.AUDIT, f"readonly: {place.root}/.git/hooks")
    assert found.detail == f"{NOT_STOPPED}: it did not exist at launch"


def test_a_change_of_memory_by_its_descriptor_is_no_change_of_a_file(place: Place) -> None:
    """Browsers cut shared memory to size; a file of such a name is a file."""
    found = place.judge(refused("truncate", "", 0, access=WRITE, base="/memfd:shared-memory"))
    assert found is not None
    assert (found.verdict, found.rule, found.path) == (Verdict.ALLOW, None, "/memfd:shared-memory")
    by_name = place.judge(refused("truncate", "/memfd:shared-memory", 0, access=WRITE))
    assert by_name is not None and by_name.verdict is Verdict.AUDIT


def test_an_allowed_change_is_allowed_and_names_its_rule(place: Place) -> None:
    found = place.judge(refused("mkdir", place.root / "free/new", 0, access=WRITE))
    assert found is not None
    assert (found.verdict, found.detail, rule_text(found)) == (Verdict.ALLOW, None, f"allow: {place.root}")


def test_renaming_an_ordinary_folder_is_allowed_although_a_floating_pattern_could_match_below(place: Place) -> None:
    record = refused("rename", place.root / "free", 0, access=WRITE, path2=place.root / "free2", follow=False)
    found = place.judge(record)
    assert found is not None and found.verdict is Verdict.ALLOW


def test_in_audit_mode_an_open_against_the_policy_is_audited_with_its_rule(place: Place) -> None:
    place.audit = True
    found = place.opened(opened(f"{place.root}/secret/key"))
    assert (found.verdict, found.detail) == (Verdict.AUDIT, None)
    assert rule_text(found).endswith("/secret")


def test_an_open_against_the_policy_that_was_not_stopped_is_marked(place: Place) -> None:
    found = place.opened(opened(f"{place.root}/secret/key"))
    assert found.verdict is Verdict.AUDIT
    assert (found.detail or "").startswith(NOT_STOPPED)


def test_listing_a_hidden_folder_is_audited_without_alarm(place: Place) -> None:
    record = OpenRecord(head(), f"{place.root}/secret", READ, "directory", False, 1, False)
    found = place.opened(record)
    assert found.verdict is Verdict.AUDIT
    assert not (found.detail or "").startswith(NOT_STOPPED)


def test_a_memfd_is_not_judged_by_a_path(place: Place) -> None:
    found = place.opened(OpenRecord(head(), "/memfd:x (deleted)", READ | WRITE, "memfd", False, 1, False))
    assert (found.verdict, found.rule) == (Verdict.ALLOW, None)


def test_a_program_start_is_judged_by_its_path(place: Place) -> None:
    assert place.executed(place.root / "free/tool").verdict is Verdict.ALLOW
    assert place.executed(place.root / "secret/tool").verdict is Verdict.AUDIT


def test_a_program_in_memory_is_against_the_policy_unless_its_switch_permits_it(place: Place) -> None:
    found = place.executed("/memfd:x (deleted)")
    assert found.verdict is Verdict.AUDIT
    place.system = SystemSwitches(memory_programs=True)
    found = place.executed("/memfd:x (deleted)")
    assert (found.verdict, rule_text(found)) == (Verdict.ALLOW, "system: memory_programs: true")
    assert place.executed(place.root / "secret/tool").verdict is Verdict.AUDIT


def test_a_path_with_bytes_that_are_no_text_is_judged(place: Place) -> None:
    found = place.judge(refused("open", f"{place.root}/secret/\udcff", errno.EACCES))
    assert rule_text(found).endswith("/secret")


def test_a_directory_may_move_where_the_same_rules_hold_below_it() -> None:
    rules = [
        PathRule(Effect.ALLOW, Access.READ | Access.WRITE, "/w", (), 1),
        PathRule(Effect.DENY, Access.READ | Access.WRITE | Access.EXECUTE, "/w/**/.env*", (), 2),
        PathRule(Effect.READONLY, Access.WRITE, "/w/kept/hooks", (), 3),
    ]
    judge = Judge(Automaton.build(rules), rules)
    assert judge.refusal("rename", Access.WRITE, "/w/src", "/w/lib") is None
    moved = judge.refusal("rename", Access.WRITE, "/w/kept", "/w/other")
    assert moved is not None and moved.below


def test_a_hooks_refusal_for_a_process_outside_names_the_rule_that_no_profile_has(place: Place) -> None:
    """A rule of the profile may even allow it; the hook looks at whose process it is."""
    device = os.stat("/proc").st_dev
    number = os.major(device) << 20 | os.minor(device)
    record = FileRecord(head(), "open", WRITE, number, "/1/uid_map", None, None, 0, False, False, OUTSIDER)
    found = place.refused_by_hook(record)
    assert (found.verdict, found.path, found.rule, found.detail) == (
        *(Verdict.DENY, "/proc/1/uid_map", CHANGE_OUTSIDE, OUTSIDER),
    )
    assert place.refused_by_hook(replace(record, detail="")).rule != CHANGE_OUTSIDE


def test_a_terminal_that_is_there_outside_only_was_meant(place: Place) -> None:
    master, slave = os.openpty()
    name = os.ttyname(slave)
    try:
        found = place.judge(refused("open", name, errno.ENOENT, access=READ | WRITE))
        assert found is not None
        assert (found.verdict, found.path, found.rule and found.rule.text) == (Verdict.DENY, name, OTHER_TERMINALS.text)
        os.fchmod(slave, 0)
        place.become_stranger()
        assert place.judge(refused("open", name, errno.ENOENT, access=READ | WRITE)) is None
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("path", ["/dev/pts/1048576", "/dev/pts/ptmx", "/dev/pts/../null", "/dev/null", "/nowhere"])
def test_other_names_that_are_not_there_are_nobodys_refusal(path: str, place: Place) -> None:
    assert place.judge(refused("open", path, errno.ENOENT)) is None


def script(place: Place, name: str, interpreter: str | Path) -> Path:
    path = place.root / "free" / name
    path.write_text(f"#! {interpreter} -x\n")
    path.chmod(0o755)
    return path


def test_a_script_whose_interpreter_is_denied_names_the_interpreter(place: Place) -> None:
    for direct in (script(place, "one", place.root / "secret/tool"), script(place, "two", place.root / "free/one")):
        found = place.judge(refused("exec", direct, errno.EACCES, access=EXECUTE))
        assert found is not None
        assert (found.path, rule_text(found)) == (f"{place.root}/secret/tool", f"deny: {place.root}/secret")


def test_a_script_that_names_itself_is_looked_at_only_so_often(place: Place) -> None:
    found = place.judge(refused("exec", script(place, "own", place.root / "free/own"), errno.EACCES, access=EXECUTE))
    assert found is not None and found.detail == UNEXPLAINED


def test_what_stands_in_a_pipe_is_not_read(place: Place) -> None:
    os.mkfifo(place.root / "free/pipe", 0o755)
    assert place.judge(refused("exec", place.root / "free/pipe", errno.EACCES, access=EXECUTE)) is None
