"""Everyday development works under `dev-tools` as it does without mcpguard, and none of it leaves a denial behind."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from harness import REPOSITORY, need_root
from matrix import Duel, Task, duel
from world import World

pytestmark = pytest.mark.kernel

# The interpreter that holds pytest lies wherever this was checked out; a person's lies below /usr or in the home.
PROFILE = f"""\
name: matrix
extends: [dev-tools]
files:
  read: ["{REPOSITORY}/.venv", "{REPOSITORY}/src", "{sys.prefix}", "{sys.base_prefix}"]
  write: ["{{workspace}}"]
  execute: ["{{workspace}}", "{REPOSITORY}/.venv", "{sys.prefix}", "{sys.base_prefix}"]
"""
POOL_TEST = """\
import multiprocessing

def double(number):
    return 2 * number

def test_a_pool_of_processes():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(double, [1, 2]) == [2, 4]

def test_a_shared_lock():
    with multiprocessing.Lock():
        pass
"""
NODE_SERVER = """
const http = require('http');
const server = http.createServer((_, reply) => reply.end('served'));
server.listen(0, '127.0.0.1', () =>
  http.get({port: server.address().port}, (reply) => {
    reply.on('data', (text) => { console.log(String(text)); server.close(); });
  }).on('error', (error) => { console.error(error); process.exit(1); }));
"""
PYTHON_SERVER = """
import http.server, threading, urllib.request
server = http.server.ThreadingHTTPServer(("", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(urllib.request.urlopen(f"http://localhost:{server.server_port}/app.py").status)
server.shutdown()
"""
MAKEFILE = "hello: hello.c\n\tgcc -O1 -o $@ $<\n\t./$@\n"
C_PROGRAM = '#include <stdio.h>\nint main(void) { puts("compiled"); return 0; }\n'
SCRIPTS = {
    "git status": "git status --short",
    "git clone": "git clone -q origin.git clone && cd clone && echo >> app.py && git commit -qam More && git push -q",
    "git worktree": "git worktree add -q other && cd other && git commit -q --allow-empty -m Other && git log -1",
    "git config in a clone": "git clone -q origin.git second && git -C second config user.name Somebody",
    "venv and pip": "python3 -m venv env && env/bin/pip install -q --no-index ./hello-1*.whl && env/bin/hello",
    "pip uninstall": "env/bin/pip uninstall -q -y hello",
    "move to the temporary folder": "echo > moved && mv moved $(mktemp -d)",
    "pytest": f"{sys.executable} -m pytest -q -p no:cacheprovider test_pool.py",
    "node": "node -e \"require('fs').writeFileSync('by-node', 'x'); console.log(os.userInfo().username)\"",
    "npm script": "npm run --silent hello",
    "make": "make hello",
    "who am I": 'python3 -c "import os, pwd; print(pwd.getpwuid(os.getuid()).pw_name)"; id; whoami',
    "group lookup": "getent group root && ls -l",
    "node server": "node server.js",
    "python server": "python3 server.py",
    "terminal in python": "python3 -c \"import pty; raise SystemExit(pty.spawn(['tty']))\"",
    "terminal by script": "script -qec tty /dev/null",
    "temporary files": "file=$(mktemp) && rm $file && python3 -c 'import tempfile; tempfile.TemporaryFile()'",
    "login shell": "bash -lc 'echo hi'",
    "search": "grep -rn greet app.py && find . -name app.py -maxdepth 1 && ls -la",
    "archive": "tar -czf app.tar.gz app.py && tar -tzf app.tar.gz",
    "editor's save": "cp app.py app.py~ && mv app.py~ app.py && touch app.py && chmod 644 app.py",
    "pipes and jobs": "(sleep 0.1 & wait) && yes | head -n 1 && cat <(echo x)",
    "date and locale": "date && locale > /dev/null && TZ=Europe/Paris date",
}


def write_wheel(path: Path) -> None:
    """A package with one command, `hello`, as pip takes it; built by hand because no index is at hand."""
    files = {
        "hello.py": "def main():\n    print('installed')\n",
        "hello-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: hello\nVersion: 1.0\n",
        "hello-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "hello-1.0.dist-info/entry_points.txt": "[console_scripts]\nhello = hello:main\n",
    }
    record = ""
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(text)}\n"
            wheel.writestr(name, text)
        wheel.writestr("hello-1.0.dist-info/RECORD", record + "hello-1.0.dist-info/RECORD,,\n")


def tasks(world: World) -> Sequence[Task]:
    project = world.project
    # As on any machine where npm and pip have been used before: new names in the home itself are not for the tree.
    for cache in (".npm", ".cache/pip"):
        (world.home / cache).mkdir(parents=True)
    world.git("clone", "--bare", "-q", ".", "origin.git")
    write_wheel(project / "hello-1.0-py3-none-any.whl")
    texts = {
        "test_pool.py": POOL_TEST,
        "pytest.ini": "[pytest]\n",
        ".npmrc": "update-notifier=false\n",
        "server.js": NODE_SERVER,
        "server.py": PYTHON_SERVER,
        "Makefile": MAKEFILE,
        "hello.c": C_PROGRAM,
        "package.json": json.dumps({"name": "x", "version": "1.0.0", "scripts": {"hello": "node -p 1+1"}}),
    }
    for name, text in texts.items():
        (project / name).write_text(text)
    return [Task(id, "run_program", {"command": ["bash", "-c", script]}) for id, script in SCRIPTS.items()]


@pytest.fixture(scope="module")
def daily_work() -> Iterator[Duel]:
    need_root()
    with duel(PROFILE, tasks) as fought:
        yield fought


@pytest.mark.parametrize("id", SCRIPTS)
def test_daily_work_succeeds(id: str, daily_work: Duel) -> None:
    assert daily_work.control[id].ok, daily_work.control[id]
    assert daily_work.guarded[id].ok, daily_work.guarded[id]


def test_daily_work_leaves_no_denial(daily_work: Duel) -> None:
    """Of what a person is shown, that is; a look at a socket that this host does not have is kept quiet."""
    denials = [e for e in daily_work.events if e["verdict"] == "deny"]
    shown = [e for e in denials if not e.get("detail", "").startswith("quiet")]
    assert not shown, "\n".join(map(str, shown))


def test_nothing_of_it_went_unrecorded(daily_work: Duel) -> None:
    assert not [e for e in daily_work.events if e["kind"] == "loss"]
    started = " ".join(str(e.get("exe")) for e in daily_work.events if e["kind"] == "exec")
    for program in ("/git", "/node", "/gcc", "/script", "/python3"):
        assert program in started
