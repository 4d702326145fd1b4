"""Performs a list of acts, each in a process of its own, and tells what became of each as one JSON line.

`acts.py PLAN` reads a JSON list of `{"id", "act", "args"}` from the file PLAN; `act` names a function registered by
`@act` in one of the `acts_*` modules beside this file. A result is `{"id", "pid", "ok", "errno", "out"}`: `ok` when the
act returned, `errno` as a symbol when it raised an OSError, `out` what it read or had to say. Needs nothing but the
standard library, because it runs inside the sandbox. It decides nothing: the test knows what ought to have happened.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

ACT_SECONDS = 240
OUT_LIMIT = 20_000
ACTS: dict[str, Callable[..., object]] = {}


def act(function: Callable[..., object]) -> Callable[..., object]:
    """Register an act under its function's name."""
    ACTS[function.__name__] = function
    return function


class Failed(Exception):
    """A program that the act started said no; holds its words."""


def perform(task: dict[str, Any]) -> dict[str, Any]:
    """Do one act in this process and describe its end."""
    try:
        out = ACTS[task["act"]](**task.get("args", {}))
    except OSError as refused:
        return {"ok": False, "errno": errno.errorcode.get(refused.errno or 0, "?"), "out": str(refused)}
    except Failed as refused:
        return {"ok": False, "errno": "", "out": str(refused)}
    except Exception:
        return {"ok": False, "errno": "CRASH", "out": traceback.format_exc()}
    return {"ok": True, "errno": "", "out": out if isinstance(out, str) else ""}


def in_child(work: Callable[[], dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    """Run `work` in a forked child; returns the child's pid and what `work` returned, however the child ends."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        signal.alarm(ACT_SECONDS)
        result = work()
        result["out"] = result["out"].replace("\0", "")[:OUT_LIMIT]
        with os.fdopen(writer, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(writer)
    text = read_until_gone(reader, pid)
    os.close(reader)
    return pid, json.loads(text) if text else {"ok": False, "errno": "", "out": "the process was killed"}


def read_until_gone(pipe: int, pid: int) -> str:
    """Everything from the pipe until its end, or until `pid` is gone even if an heir of it keeps the pipe open."""
    chunks = b""
    handle = os.pidfd_open(pid)
    try:
        while True:
            ready, _, _ = select.select([pipe, handle], [], [])
            if pipe in ready:
                chunk = os.read(pipe, 65536)
                if not chunk:
                    break
                chunks += chunk
            elif handle in ready:
                break
    finally:
        os.close(handle)
        os.waitpid(pid, 0)
    return chunks.decode()


def main() -> int:
    import acts_escape  # noqa: F401 - each registers its acts
    import acts_file  # noqa: F401
    import acts_names  # noqa: F401
    import acts_net  # noqa: F401
    import acts_terminals  # noqa: F401

    with open(sys.argv[1]) as plan:
        tasks = json.load(plan)
    for task in tasks:
        pid, result = in_child(partial(perform, task))
        print(json.dumps({"id": task["id"], "pid": pid, **result}), flush=True)
    return 0


if __name__ == "__main__":
    sys.modules["acts"] = sys.modules["__main__"]
    sys.exit(main())
