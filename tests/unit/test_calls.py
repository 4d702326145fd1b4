"""Which system calls the record does not look at, because the filter refuses them first."""

from __future__ import annotations

import re
from pathlib import Path

from mcpguard.backends import guard
from mcpguard.session import seccomp

LISTED = Path(__file__).resolve().parents[2] / "bpf/include/mg_listed.h"


def test_what_is_not_looked_at_is_refused_by_the_filter_whatever_the_profile_says() -> None:
    filtered = set(re.findall(r"^MG_FILTERED\((\w+)", LISTED.read_text(encoding="utf-8"), re.MULTILINE))
    always = set(seccomp.REFUSED).difference(seccomp.SELF_SANDBOX, seccomp.DEBUGGING)
    # Of `ioctl` and `prlimit64` only what is refused by itself is on record. Of asynchronous calls only refusals are.
    assert filtered - always - set(seccomp.MISSING) == {seccomp.CLONE3, "ioctl", "prlimit64"}


def test_what_tier_2_does_not_look_at_is_refused_by_its_filter() -> None:
    unseen = {"umount2" if name == "umount" else name for name in guard.UNRECORDED[guard.MODIFY_RETURN]}
    assert unseen <= set(seccomp.REFUSED).difference(seccomp.DEBUGGING)
