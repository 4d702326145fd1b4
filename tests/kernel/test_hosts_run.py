"""Names that share an address, in whole sessions: everyday clients, real TLS, and a server that tells what it was asked for."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness import Json, Sandbox, sandbox
from netlab import certificate, enter_network
from test_names_run import OK, Town, town  # noqa: F401 - a fixture

pytestmark = pytest.mark.kernel

TLS_PORT, PORT = 8443, 8081
PROFILE = """\
name: NAME
extends: [dev-tools]
files:
  write: ["{workspace}"]
network:
  allow: ["ok.test", "*.wild.test:8443"]
  deny: ["shut.wild.test"]
  sni: MODE
"""
# Run as `sh -c`, with NAME put in; each ends well when it has an answer from the server.
CLIENTS = {
    "curl": f"curl -sm20 --cacert ca.pem --connect-to ::{OK}:{TLS_PORT} https://NAME:{TLS_PORT}/",
    "openssl": f"echo | openssl s_client -connect {OK}:{TLS_PORT} -servername NAME -CAfile ca.pem -verify_return_error",
    "openssl, TLS 1.2": f"echo | openssl s_client -tls1_2 -connect {OK}:{TLS_PORT} -servername NAME",
    "python": f"python3 talk.py {OK} {TLS_PORT} NAME",
    "python, a large hello": f"python3 talk.py {OK} {TLS_PORT} NAME large",
    "python, byte by byte": f"python3 talk.py {OK} {TLS_PORT} NAME slow",
    "node": f'node -e \'require("tls").connect({{host: "{OK}", port: {TLS_PORT}, servername: "NAME", '
    'rejectUnauthorized: false}, () => process.exit(0)).on("error", () => process.exit(1))\'',
    "curl in the clear": f"curl -sfm20 -H 'Host: NAME' http://{OK}:{PORT}/",
    "wget in the clear": f"wget -qO- -T20 -t1 --header='Host: NAME' http://{OK}:{PORT}/",
}
NAMELESS = {
    "openssl without a name": f"echo | openssl s_client -connect {OK}:{TLS_PORT} -noservername",
    "curl by address": f"curl -ksm20 https://{OK}:{TLS_PORT}/",
}
CLEAR = [name for name in CLIENTS if "clear" in name]
TALK = """
import socket, ssl, sys
host, port, name, *how = sys.argv[1:]
context = ssl.create_default_context(cafile="ca.pem")
if "large" in how:
    context.set_alpn_protocols(["x" * 200 + str(n) for n in range(15)])
with socket.create_connection((host, int(port)), timeout=20) as sock:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    come, go = ssl.MemoryBIO(), ssl.MemoryBIO()
    talk = context.wrap_bio(come, go, server_hostname=name)
    while True:
        try:
            talk.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        data = go.read()
        for at in range(0, len(data), 1 if "slow" in how else len(data) or 1):
            sock.sendall(data[at : at + (1 if "slow" in how else len(data))])
        if done:
            break
        come.write(sock.recv(65536))
print("done")
"""


@dataclass
class Front:
    """A TLS server for several names at one address.

    Attributes:
        asked: the names of hellos that arrived, None for those without.
    """

    town: Town
    ca: Path
    asked: list[str | None] = field(default_factory=list)


def _serve(listener: socket.socket, front: Front, context: ssl.SSLContext | None) -> None:
    def talk(stream: socket.socket) -> None:
        with contextlib.suppress(OSError), stream:
            stream.settimeout(20)
            with context.wrap_socket(stream, server_side=True) if context else stream as talking:
                head = talking.recv(4096).decode()
                if not context:
                    front.asked += [
                        line.removeprefix("Host: ") for line in head.splitlines() if line.startswith("Host:")
                    ]
                talking.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
                if not context:
                    talking.shutdown(socket.SHUT_WR)
                while context and talking.recv(4096):
                    pass

    with contextlib.suppress(OSError):
        while True:
            threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()


@pytest.fixture(scope="module")
def front(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:  # noqa: F811
    folder = tmp_path_factory.mktemp("ca")
    shown = certificate(folder, "ok.test", "evil.test", "shut.wild.test", "a.wild.test")
    made = Front(town, shown[0])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*shown)
    context.sni_callback = lambda _sock, name, _context: made.asked.append(name)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    enter_network(f"/run/netns/{town.name}")
    try:
        listeners = [socket.create_server((OK, port), backlog=64) for port in (TLS_PORT, PORT)]
    finally:
        enter_network(f"/proc/self/fd/{home}")
        os.close(home)
    for listener, how in zip(listeners, (context, None), strict=True):
        threading.Thread(target=_serve, args=(listener, made, how), daemon=True).start()
    yield made
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture(scope="module")
def box(front: Front) -> Iterator[Sandbox]:
    with sandbox() as made:
        made.prefix = front.town.prefix
        for mode in ("check", "require", "off"):
            made.write_profile(f"sni-{mode}", PROFILE.replace("NAME", f"sni-{mode}").replace("MODE", mode))
        project = made.world.project
        (project / "ca.pem").write_bytes(front.ca.read_bytes())
        (project / "talk.py").write_text(TALK)
        clients = {
            f"{client} {name}": words.replace("NAME", name)
            for name in ("ok.test", "evil.test", "shut.wild.test")
            for client, words in CLIENTS.items()
        }
        (project / "clients.py").write_text(
            "import json, subprocess, sys\n"
            "subprocess.run(['getent', 'ahostsv4', 'ok.test'], check=True, capture_output=True)\n"
            f"for client, words in { ({**clients, **NAMELESS})!r}.items():\n"
            "    done = subprocess.run(['sh', '-c', words], capture_output=True, text=True)\n"
            "    print(json.dumps([client, done.returncode]), flush=True)\n"
        )
        yield made


@dataclass
class Outcome:
    """What every client ended with, the names that the server has seen, and the record."""

    codes: dict[str, int]
    asked: list[str | None]
    events: list[Json]

    def failed(self) -> dict[str, int]:
        return {client: code for client, code in self.codes.items() if code}

    def denied(self, **wanted: object) -> list[Json]:
        return [e for e in self.events if e["verdict"] == "deny" and all(e.get(k) == v for k, v in wanted.items())]


def _all_clients(box: Sandbox, front: Front, profile: str | None) -> Outcome:
    front.asked.clear()
    command = ["python3", "clients.py"]
    done = box.run(command, options=["-p", profile]) if profile else box.control(command)
    assert done.code == 0, done.err
    codes = dict(json.loads(line) for line in done.out.splitlines())
    return Outcome(codes, list(front.asked), box.events() if profile else [])


@pytest.fixture(scope="module")
def checked(box: Sandbox, front: Front) -> Outcome:
    control = _all_clients(box, front, None)
    assert control.failed() == {}
    assert {"ok.test", "evil.test", "shut.wild.test", None} <= set(control.asked)
    return _all_clients(box, front, "sni-check")


@pytest.fixture(scope="module")
def required(box: Sandbox, front: Front) -> Outcome:
    return _all_clients(box, front, "sni-require")


@pytest.mark.parametrize("client", CLIENTS)
def test_of_names_at_one_address_only_the_allowed_one_is_reached(checked: Outcome, client: str) -> None:
    assert checked.codes[f"{client} ok.test"] == 0
    assert checked.codes[f"{client} evil.test"] != 0
    assert checked.codes[f"{client} shut.wild.test"] != 0


def test_the_server_never_heard_of_another_one(checked: Outcome) -> None:
    assert "ok.test" in checked.asked
    assert not [name for name in checked.asked if name and name != "ok.test"]


def test_each_refusal_is_on_record_with_its_host(checked: Outcome) -> None:
    told = checked.denied(kind="net", host="evil.test", address=OK, port=TLS_PORT, protocol="tcp")
    assert {"curl", "openssl", "python3", "node"} <= {event["comm"] for event in told}
    assert checked.denied(kind="net", host="evil.test", address=OK, port=PORT)
    assert "at the address of an allowed one" in told[0]["detail"]
    (ruled, *_) = checked.denied(kind="net", host="shut.wild.test", port=TLS_PORT)
    assert "shut.wild.test" in ruled["rule"]["text"]


def test_without_a_name_the_address_counts(checked: Outcome) -> None:
    assert [checked.codes[client] for client in NAMELESS] == [0, 0]
    assert None in checked.asked


def test_where_a_name_is_required_there_is_no_way_without(required: Outcome) -> None:
    for client in CLIENTS:
        assert (required.codes[f"{client} ok.test"] == 0) is (client not in CLEAR), client
        assert required.codes[f"{client} evil.test"] != 0
    assert 0 not in [required.codes[client] for client in NAMELESS]
    assert set(required.asked) == {"ok.test"}
    assert any("names no host" in event["detail"] for event in required.denied(kind="net", address=OK))


def test_switched_off_every_name_of_the_address_is_reached(box: Sandbox, front: Front) -> None:
    outcome = _all_clients(box, front, "sni-off")
    assert outcome.failed() == {}


def test_a_host_can_be_asked_for_in_the_log(box: Sandbox, checked: Outcome) -> None:
    session = checked.events[0]["session"]
    found = box.events(session, "--host", "ev?l.*", "--verdict", "deny")
    assert found
    assert {event["host"] for event in found} == {"evil.test"}
