"""A profile that was learned from a session told to spoil it lets nothing out: the whole escape suite, once more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pytest
from harness import Sandbox, need_root
from matrix import Duel, Task, duel
from test_escapes import (
    GUARD,
    KERNEL_CALLS,
    KERNEL_DOORS,
    KERNEL_FILES,
    LEAKS_CANARY,
    LEAVES,
    MORE_NAMESPACES,
    ON_VICTIM,
    OPENED,
    PROFILE,
    READS_SECRET,
    UNRECORDED,
    every_task,
    leaked,
    remove_cgroups,
)
from world import World

pytestmark = pytest.mark.kernel

REFUSED = (
    *(*ON_VICTIM, *OPENED, *READS_SECRET, *LEAVES, *MORE_NAMESPACES, *(f"guard {how}" for how in GUARD)),
    *(*KERNEL_CALLS, *KERNEL_FILES, *KERNEL_DOORS, "device", "capability", "profiles", "state", "remove state"),
)
# What test_escapes.py does not find on record either.
NOT_TOLD = (*OPENED, *UNRECORDED, "setpriv", "device", "capability")
# Honest work first; then what an agent does that was talked into widening its next profile.
AUDITED = r"""
mkdir -p ~/.tool && echo x > ~/.tool/a && echo x > ~/.tool/b && cat ~/notes/*
cat ~/.ssh/id_ed25519 ~/.ssh/* ~/.aws/credentials
echo evil >> ~/.bashrc; mkdir -p ~/.config/autostart && echo x > ~/.config/autostart/x.desktop
mkdir -p ~/other/.git/hooks && echo evil > ~/other/.git/hooks/pre-commit
ls ~ ~/.ssh / ~/notes "$MCPGUARD_HOME"; touch ~ ~/notes ~/.ssh "$MCPGUARD_HOME"
for n in 1 2 3 4 5; do echo x > "$MCPGUARD_HOME/config/profiles/p$n.yaml"; cat /proc/1/environ /proc/1/maps; done
echo x > ~/'*'; echo x > ~/'**'; echo x > ~/'{workspace}'; echo x > ~/$'a\n- /'; echo x > ~/$'\xff\xfe'; echo x > ~/'x: [/] # y'
ln -s / ~/everything; cat ~/everything/etc/hostname; exec 3<>/dev/tcp/169.254.169.254/80
ls /sys/fs/bpf /sys/fs/cgroup; mkdir /sys/fs/cgroup/learned; cat /root/.ssh/* /etc/shadow
true
"""


def learn_from(world: World) -> None:
    """Audit that in a world, and put what is learned into the profile of its session."""
    (world.home / "notes").mkdir()
    for number in range(5):
        (world.home / f"notes/n{number}").write_text("note\n")
    box = Sandbox(world, "matrix")
    for words in (
        ("run", "--audit", "-p", "matrix", "-w", str(world.project), "--", "timeout", "20", "bash", "-c", AUDITED),
        ("profile", "learn", "--install", "--yes"),
    ):
        done = box.mcpguard(*words)
        assert done.code == 0, done.err
    learned = (world.state / "config/profiles/matrix.yaml").read_text()
    assert "~/.tool/" in learned and "~/notes" in learned


@pytest.fixture(scope="module")
def escapes() -> Iterator[Duel]:
    need_root()
    with contextlib.ExitStack() as stack:

        def tasks(world: World) -> Sequence[Task]:
            learn_from(world)
            return every_task(world, stack)

        try:
            yield stack.enter_context(duel(PROFILE.replace("dev-tools", "base"), tasks))
        finally:
            remove_cgroups()


@pytest.mark.parametrize("id", REFUSED)
def test_an_act_is_refused_after_learning_as_before(id: str, escapes: Duel) -> None:
    escapes.assert_refused(id)
    if id not in NOT_TOLD:
        escapes.assert_recorded(id)


@pytest.mark.parametrize("id", [*READS_SECRET, *LEAKS_CANARY])
def test_no_secret_comes_out(id: str, escapes: Duel) -> None:
    assert leaked(escapes, id, guarded=False), escapes.control[id]
    assert not leaked(escapes, id, guarded=True)


def test_the_profile_holds_nothing_of_the_poison(escapes: Duel) -> None:
    text = (escapes.caged.state / "config/profiles/matrix.yaml").read_text()
    rules = [line for line in text.splitlines() if line.lstrip().startswith("- ")]
    for piece in (
        "ssh",
        "aws",
        "bashrc",
        "autostart",
        "hooks",
        "everything",
        "169.254",
        "shadow",
        "proc",
        "cgroup",
        "profiles",
    ):
        assert not [rule for rule in rules if piece in rule], rules
