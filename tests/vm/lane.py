"""Boot Debian's kernels and run things in them.

python tests/vm/lane.py run --kernel 6.12 --disk ext4 -- uname -a
python tests/vm/lane.py matrix --only ci
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import boot
import kernels
import suite

GUEST_DIED = 125


def run(arguments: argparse.Namespace) -> int:
    """Boot one kernel and run one command in the current folder; its exit code is ours."""
    machine = boot.Machine(
        kernel=arguments.kernel,
        lsm=arguments.lsm,
        preempt=arguments.preempt,
        disks=tuple(arguments.disk),
        load=tuple(arguments.load),
        headers=arguments.headers,
        append=arguments.append,
        counts=arguments.count,
        processors=arguments.smp,
        memory=arguments.memory,
        seconds=arguments.timeout,
    )
    variables = {}
    for word in arguments.env:
        name, given, value = word.partition("=")
        variables[name] = value if given else os.environ.get(name, "")
    ended = boot.boot(machine, arguments.command, folder=Path.cwd(), variables=variables, results=arguments.out)
    if ended.code is None:
        print(f"vm lane: {ended.why}", file=sys.stderr)
        return GUEST_DIED
    if arguments.verbose:
        print(f"vm lane: {ended.release}, {ended.seconds:.1f} s, exit code {ended.code}", file=sys.stderr)
    return ended.code


def matrix(arguments: argparse.Namespace) -> int:
    """Boot the chosen lanes, one for each processor at a time; fails when one of them did."""
    reports = []
    with suite.running(suite.choose(arguments.only or ["all"]), arguments.at_once) as lanes:
        for lane in lanes.values():
            reports.append(lane.result())
            print(*reports[-1].lines(), sep="\n", flush=True)
    failed = [report.lane.name for report in reports if not report.ok]
    print(
        f"{len(reports)} lanes, {len(failed)} failed: {', '.join(failed)}"
        if failed
        else f"{len(reports)} lanes, all ok"
    )
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("run", help="boot one kernel and run one command in it")
    verb.add_argument("--kernel", default="6.1", help="a series (6.1, 6.12, ...) or a linux-image package")
    verb.add_argument("--lsm", default="bpf", choices=boot.LSM_LISTS, help="whether bpf is among the active LSMs")
    verb.add_argument("--preempt", default="voluntary", choices=boot.PREEMPT)
    verb.add_argument("--disk", action="append", default=[], choices=boot.DISKS, help="may be given more than once")
    verb.add_argument("--load", action="append", default=[], metavar="MODULE", help="load a kernel module as well")
    verb.add_argument("--headers", action="store_true", help="let the guest compile for its kernel, as BCC does")
    verb.add_argument("--append", default="", help="more words for the kernel's command line")
    verb.add_argument("--count", action="store_true", help="the guest's clocks count instructions, not time")
    verb.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help="a variable for the command")
    verb.add_argument(
        "--smp", type=int, default=1, help="processors; with 2 everything is slower when the host is busy"
    )
    verb.add_argument("--memory", default="2G")
    verb.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    verb.add_argument("--out", type=Path, metavar="FOLDER", help="gets $MCPGUARD_LANE_OUT and the console's log")
    verb.add_argument("-v", "--verbose", action="store_true")
    verb.add_argument("command", nargs="+", metavar="-- COMMAND")
    verb.set_defaults(do=run)
    verb = verbs.add_parser("matrix", help="boot every lane and run the tests of tests/vm/guest in each")
    verb.add_argument("--only", action="append", metavar="LANE", help="a lane, a pattern such as '6.12-*', or ci")
    verb.add_argument("--at-once", type=int, metavar="GUESTS", help="how many at a time: one for each processor")
    verb.set_defaults(do=matrix)
    arguments = parser.parse_args()
    # Ended from outside, the guest and the scratch files go as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return int(arguments.do(arguments))
    except kernels.LaneError as error:
        print(f"vm lane: {error}", file=sys.stderr)
        return GUEST_DIED


if __name__ == "__main__":
    sys.exit(main())
