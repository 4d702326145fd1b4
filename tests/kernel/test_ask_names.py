"""`run --ask` holds a look-up that no rule covers until it is answered in `watch`: whole sessions, real programs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import RUN_SECONDS, Json, Sandbox
from netlab import enter_network
from puppet import Puppet, puppet, watching
from test_names_run import EVIL, Town, box, town  # noqa: F401

from mcpguard.events.store import Store
from mcpguard.session.approve import Question, Scope, Watch, leave

sys.path.insert(0, str(Path(__file__).parents[1] / "tui"))
from records import until
from test_in_a_terminal import MCPGUARD, Terminal, terminal  # noqa: F401

from mcpguard.tui.app import WatchApp
from mcpguard.tui.questions import Questions

pytestmark = pytest.mark.kernel

HTTPS = 443
# `sh -c`, with NAME put in; each as patient as it is by itself.
CLIENTS = {
    "glibc": "getent ahostsv4 NAME",
    "python": "python3 -c 'import socket; print(socket.gethostbyname(\"NAME\"))'",
    "node": 'node -e \'require("dns").lookup("NAME", (e, a) => { console.log(e || a); process.exit(e ? 1 : 0) })\'',
    "c-ares": 'node -e \'require("dns").resolve4("NAME", (e, a) => { console.log(e || a); process.exit(e ? 1 : 0) })\'',
    "go": "./resolve-go NAME",
    "dig": "dig +short NAME | grep .",
    "curl": f"curl -sm80 http://NAME:{HTTPS}/",
}


@pytest.fixture
def asking(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Puppet]:  # noqa: F811
    """A guarded program in a session that asks, and this process as its user outside."""
    monkeypatch.setenv("MCPGUARD_HOME", str(box.world.state))
    with puppet(box, options=["--ask"]) as made:
        yield made


@pytest.fixture(scope="module")
def served(town: Town) -> Iterator[list[str]]:  # noqa: F811
    """Somebody is at the port of a name that was approved; what came."""
    came: list[str] = []
    opened: list[socket.socket] = []
    ready = threading.Event()

    def serve() -> None:
        enter_network(f"/run/netns/{town.name}")
        with socket.create_server(("0.0.0.0", HTTPS), backlog=32) as listener:
            opened.append(listener)
            ready.set()
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as stream:
                        came.append(stream.getsockname()[0])
                        stream.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    threading.Thread(target=serve, daemon=True).start()
    assert ready.wait(10)
    yield came
    with contextlib.suppress(OSError):
        opened[0].shutdown(socket.SHUT_RDWR)


def heard(watch: Watch, holds: Callable[[list[Question]], bool]) -> list[Question]:
    deadline = time.monotonic() + RUN_SECONDS
    while True:
        news = watch.news()
        if news is not None and holds(news):
            return news
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Doing:
    """What the guarded program does beside us."""

    def __init__(self, program: Puppet, *words: str | int) -> None:
        self.answer: str | None = None
        self._thread = threading.Thread(target=self._run, args=(program, words))
        self._thread.start()

    def _run(self, program: Puppet, words: tuple[Any, ...]) -> None:
        self.answer = program.ask(*words)

    def done(self) -> str:
        self._thread.join(RUN_SECONDS)
        assert self.answer is not None, "it still waits"
        return self.answer


def questions_of(program: Puppet, host: str) -> list[Json]:
    return [event for event in program.events("--kind", "dns") if event.get("host") == host]


def test_a_look_up_waits_for_the_answer_and_then_finds_the_address_open(
    town: Town,  # noqa: F811
    served: list[str],
    asking: Puppet,
) -> None:
    town.server.asked.clear()
    # Nobody watches: refused at once, and the question stands open as before.
    assert "not known" in asking.ask("connect", "evil.test", HTTPS)
    with watching(asking.session) as watch:
        again = Doing(asking, "connect", "other.evil.test", HTTPS)
        (question,) = heard(watch, lambda found: len(found) == 1 and found[0].count > 0)
        assert (question.name, question.pid, question.comm) == ("other.evil.test", asking.pid, "python3")
        assert again.answer is None and not town.server.asked
        town.server.records["other.evil.test"] = [f"60 A {EVIL}"]
        outcome = asking.approve(("network", "allow", f"other.evil.test:{HTTPS}"), scope=Scope.ONCE)
        assert outcome.now and again.done() == ""
        assert heard(watch, lambda found: not found) == []
    assert served[-1:] == [EVIL]
    assert asking.ask("connect", EVIL, 22) == "EPERM"
    assert {name for name, *_ in town.server.asked} == {"other.evil.test"}
    asking.end()
    told = questions_of(asking, "other.evil.test")
    assert {event["verdict"] for event in told} == {"allow"}
    assert {event["rule"]["text"] for event in told} == {f"network allow other.evil.test:{HTTPS}"}
    refused = questions_of(asking, "evil.test")
    assert {event["verdict"] for event in refused} == {"deny"}


def test_what_is_left_refused_or_loses_its_watcher_is_refused_at_once(asking: Puppet) -> None:
    with watching(asking.session) as watch:
        left = Doing(asking, "connect", "left.evil.test", HTTPS)
        heard(watch, lambda found: len(found) == 1)
        leave(asking.session, "left.evil.test")
        assert "not known" in left.done()
        began = time.monotonic()
        assert "not known" in asking.ask("connect", "left.evil.test", HTTPS)
        alone = Doing(asking, "connect", "alone.evil.test", HTTPS)
        heard(watch, lambda found: [one.name for one in found] == ["alone.evil.test"])
    assert "not known" in alone.done()
    # A rule that denies is no question, whoever watches.
    with watching(asking.session):
        assert "not known" in asking.ask("connect", "shut.wild.test", HTTPS)
    assert time.monotonic() - began < RUN_SECONDS / 2
    asking.end()
    (first, *_), denied = questions_of(asking, "left.evil.test"), questions_of(asking, "shut.wild.test")
    assert "left refused in watch" in first["detail"] and first["rule"]["file"] == "default"
    assert {event["rule"]["text"] for event in denied} == {"network deny shut.wild.test"}


def test_everyday_clients_wait_longer_than_they_would_for_a_server(
    town: Town,  # noqa: F811
    box: Sandbox,  # noqa: F811
    served: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All at once, each for a name of its own, answered after more than the five seconds that they give a server."""
    monkeypatch.setenv("MCPGUARD_HOME", str(box.world.state))
    names = {client: f"{number}.evil.test" for number, client in enumerate(CLIENTS)}
    for name in names.values():
        town.server.records[name] = [f"60 A {EVIL}"]
    town.server.asked.clear()
    lines = [f"({words.replace('NAME', names[client])}) >{client}.out 2>&1 &" for client, words in CLIENTS.items()]
    (box.world.project / "all.sh").write_text("\n".join(["until [ -e go ]; do sleep 0.1; done", *lines, "wait"]))
    with puppet(box, options=["--ask"]) as program:
        running = threading.Thread(target=program.ask, args=("system", f"cd {box.world.project}; sh all.sh"))
        with watching(program.session) as watch:
            (box.world.project / "go").touch()
            running.start()
            heard(watch, lambda found: len(found) == len(names))
            time.sleep(6)
            heard_names = {one.name for one in watch.news() or ()} or set(names.values())
            assert heard_names == set(names.values()) and not town.server.asked
            program.approve(*(("network", "allow", f"{name}:{HTTPS}") for name in names.values()))
            running.join(RUN_SECONDS)
        program.end()
    for client in CLIENTS:
        out = (box.world.project / f"{client}.out").read_text()
        assert EVIL in out or "hello" in out, (client, out)


def test_the_screen_shows_who_waits_and_a_key_lets_them_go_on(
    town: Town,  # noqa: F811
    served: list[str],
    asking: Puppet,
) -> None:
    town.server.records["seen.evil.test"] = [f"60 A {EVIL}"]

    def rows(app: WatchApp) -> list[list[str]]:
        shown = app.query_one(Questions)
        return [[str(cell) for cell in shown.get_row_at(row)] for row in range(shown.row_count)]

    def row(app: WatchApp, name: str) -> list[str]:
        return next((found for found in rows(app) if name in found[3]), [""])

    async def scene() -> tuple[str, str]:
        with Store.open(create=False) as store:
            session = store.session(asking.session)
        app = WatchApp(lambda: Store.open(create=False), session)
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app._feed._watch is not None, "the screen holds look-ups")
            await pilot.press("7")
            waits = Doing(asking, "connect", "seen.evil.test", HTTPS)
            await until(pilot, lambda: row(app, "seen.evil.test")[0] == "HELD", str(rows(app)))
            assert "1 HELD" in str(app.query_one("#counts").render())
            assert row(app, "seen.evil.test")[4].startswith("python3")
            await pilot.press("n")  # another question may stand above it
            await until(
                pilot,
                lambda: "seen.evil.test:443" in str(app.query_one("#details").render()),
                str(app.query_one("#details").render()) + str(rows(app)),
            )
            await pilot.press("s")
            await until(pilot, lambda: row(app, "seen.evil.test")[0] == "allowed", str(rows(app)))
            allowed = waits.done()
            refused = Doing(asking, "connect", "shunned.evil.test", HTTPS)
            await until(pilot, lambda: row(app, "shunned.evil.test")[0] == "HELD", str(rows(app)))
            await pilot.press("n", "x")
            await until(pilot, lambda: row(app, "shunned.evil.test")[0] == "left refused", str(rows(app)))
            return allowed, refused.done()

    allowed, refused = asyncio.run(scene())
    assert allowed == "" and served[-1] == EVIL
    assert "not known" in refused
    assert not [name for name, *_ in town.server.asked if "shunned" in name]


def test_in_a_terminal_a_held_program_goes_on_when_the_profile_has_the_name(
    town: Town,  # noqa: F811
    box: Sandbox,  # noqa: F811
    served: list[str],
    terminal: Terminal,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    town.server.records["typed.evil.test"] = [f"60 A {EVIL}"]
    project = box.world.project
    places = ["env", f"MCPGUARD_HOME={box.world.state}", f"HOME={box.world.home}"]
    # Until somebody is known to watch it is refused at once, and asks again.
    look = "getent ahostsv4 typed.evil.test && curl -sm60 http://typed.evil.test:443/"
    script = f"until {look}; do sleep 0.1; done; sleep 60"
    words = ["run", "--ask", "-p", "names", "-w", str(project), "--", "sh", "-c", f"cd {project}; {script}"]
    terminal.open("agent", *town.prefix, *places, *MCPGUARD, *words)
    terminal.wait_for("agent", "question in: mcpguard watch")
    terminal.open("watch", *places, *MCPGUARD, "watch", size=(120, 32))
    terminal.wait_for("watch", "running", "profile names")
    terminal.keys("watch", "7")
    terminal.wait_for("watch", "1 HELD", "HELD", "typed.evil.test", "getent")
    assert EVIL not in terminal.screen("agent")
    terminal.keys("watch", "w")
    terminal.wait_for("watch", "Allow it in", "typed.evil.test:443")
    terminal.keys("watch", "y")
    terminal.wait_for("watch", "in the profile", "holds now")
    terminal.wait_for("agent", EVIL, "hello")
