"""What a server is told to start as, when its catalogue says that it may."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from events_help import OPEN_POLICY, make_policy

from mcpguard.catalogue import approved, starting
from mcpguard.catalogue.server import STDIO, Server
from mcpguard.events.store import Store
from mcpguard.gate.admission import Unvetted
from mcpguard.gate.ledger import Ledger
from mcpguard.gate.servers import Servers

PYTHON = "/usr/bin/python3"
EMPTY = '{"rules": [], "classes": [], "untrusted": [], "after_taint": "allow", "gate": true, "confined": []}'


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Servers:
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path / "guard"))
    (tmp_path / "good").mkdir()
    (tmp_path / "good/rel.py").write_text("print('good')")
    monkeypatch.chdir(tmp_path / "good")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    server = Server("s", "", "", "", STDIO, command=PYTHON, args=("rel.py", "--flag", "rel.py.txt"))
    found = starting.identify(server, environment, Path.cwd())
    assert found is not None
    approved.approve("s", "test", found, ())
    store = Store.open(tmp_path / "events.db")
    session = store.start_session(make_policy(*OPEN_POLICY), command=("a",), tier="3", coverage=(), now_ns=1)
    facts = {
        "session": session,
        "environment": environment,
        "workspace": str(tmp_path / "good"),
        "mcp": EMPTY,
        "servers": [],
        "confined": [],
        "web": None,
        "again": False,
    }
    return Servers(facts, Ledger(store, session))


def test_a_script_is_started_by_its_whole_path(servers: Servers, tmp_path: Path) -> None:
    admitted = servers.admit("s", [PYTHON, "rel.py", "--flag", "rel.py.txt"], os.getpid())
    script = str(tmp_path / "good/rel.py")
    assert admitted.argv == (PYTHON, script, "--flag", "rel.py.txt")
    assert all(os.fsencode(script) in form.argv for form in admitted.forms)


def test_the_same_words_in_another_folder_are_another_server(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/rel.py").write_text("print('evil')")
    monkeypatch.chdir(tmp_path / "evil")
    with pytest.raises(Unvetted, match="is not what was approved"):
        servers.admit("s", [PYTHON, "rel.py", "--flag", "rel.py.txt"], os.getpid())
