"""Names that hold, in whole sessions: everyday clients, a name server that remembers, and what is tried to get around it."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from harness import ACTORS, RUN_SECONDS, Finished, Json, Sandbox, mcpguard_command, need_root, sandbox
from netlab import certificate, enter_network, ip, site
from puppet import puppet
from upstream import HOST, Upstream, upstream

import mcpguard
from mcpguard.events.doors import DOOR

pytestmark = pytest.mark.kernel
RESOLVER = f"{mcpguard.__path__[0]}/resolver/__main__.py"

OK, OTHER, EVIL, INTERN = "203.0.113.1", "203.0.113.2", "203.0.113.3", "10.66.0.9"
OK6 = "2001:db8:77::1"
BEHIND_NAT = "64:ff9b::203.0.113.2"
STUB = "127.0.0.53"
PORT = 8080
PROFILE = f"""\
name: names
extends: [dev-tools]
files:
  write: ["{{workspace}}"]
  execute: ["{{workspace}}"]
network:
  allow:
    - "ok.test:{PORT}"
    - "*.wild.test:{PORT}"
    - "intern.test:{PORT}"
    - "rebind.test:{PORT}"
    - "meta.test:{PORT}"
  deny:
    - "shut.wild.test"
    - "{OTHER}"
"""
RECORDS = {
    "ok.test": [f"60 A {OK}", f"60 AAAA {OK6}"],
    "evil.test": [f"60 A {EVIL}"],
    "a.wild.test": [f"60 A {OK}"],
    "shut.wild.test": [f"60 A {OK}"],
    "denied.wild.test": [f"60 A {OTHER}"],
    "rebind.test": ["0 A 127.0.0.1"],
    "meta.test": ["0 A 169.254.169.254"],
    "kin.wild.test": ["60 CNAME a.wild.test."],
    "alias.wild.test": ["60 CNAME shut.wild.test."],
    "nat.wild.test": [f"60 AAAA {BEHIND_NAT}"],
}
# Run as `sh -c`, with NAME put in; they print an address or a page.
CLIENTS = {
    "getent": "getent ahostsv4 NAME",
    "python": "python3 -c 'import socket; print(socket.getaddrinfo(\"NAME\", 8080)[0][4][0])'",
    "node lookup": 'node -e \'require("dns").lookup("NAME", (e, a) => { console.log(e || a); process.exit(e ? 1 : 0) })\'',
    "node resolve": 'node -e \'require("dns").resolve4("NAME", (e, a) => { console.log(e || a); process.exit(e ? 1 : 0) })\'',
    "curl": f"curl -sm9 http://NAME:{PORT}/",
    "curl over IPv6 or IPv4": f"curl -sm9 -4 http://NAME:{PORT}/",
    "wget": f"wget -qO- -T9 -t1 http://NAME:{PORT}/",
    "git": f"git ls-remote http://NAME:{PORT}/r 2>&1 | grep -v 'not resolve' | grep .",
    "musl": "./resolve NAME",
    "go": "./resolve-go NAME",
    "nc": f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w9 NAME {PORT} | grep .",
    "dig": "dig +short NAME | grep .",
    "dig by a stream": "dig +short +tcp NAME | grep .",
    "dig elsewhere": "dig +short @203.0.113.77 NAME | grep .",
    "dig elsewhere by a stream": "dig +short +tcp @203.0.113.77 NAME | grep .",
    "dig the stub of the host": "dig +short @127.0.0.53 NAME | grep .",
    "dig over IPv6": "dig +short @2001:db8:77::77 NAME | grep .",
    "dig without extensions": "dig +short +noedns NAME | grep .",
}
# Nobody is at these servers outside, so only the refusal has a control there.
NOBODY_THERE = frozenset(
    name for name in CLIENTS if "elsewhere" in name or "stub" in name or ("IPv6" in name and "dig" in name)
)


@dataclass
class Town:
    """A network namespace with public addresses of its own, servers on them, and a name server."""

    name: str
    server: Upstream
    came: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def prefix(self) -> tuple[str, ...]:
        """The words that run a command there, with files of its own in /etc."""
        binds = " && ".join(f"mount --bind {source} {target}" for target, source in self.files.items())
        script = f'mount --make-rprivate / && {binds} && exec "$@"'
        return ("nsenter", f"--net=/run/netns/{self.name}", "unshare", "-m", "sh", "-c", script, "sh")


def _serve(server: socket.socket, came: list[str]) -> None:
    with contextlib.suppress(OSError):
        while True:
            stream, _ = server.accept()
            with stream, contextlib.suppress(OSError):
                stream.settimeout(5)
                came.append(f"{stream.getsockname()[0]}: {stream.recv(4096).decode(errors='replace')}")
                stream.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    need_root()
    folder = tmp_path_factory.mktemp("etc")
    name = f"mgn{os.getpid()}"
    with contextlib.ExitStack() as stack:
        ip("netns", "add", name)
        stack.callback(subprocess.run, ["ip", "netns", "delete", name], capture_output=True, check=False)
        ip("-n", name, "link", "set", "lo", "up")
        for address in (OK, OTHER, EVIL, INTERN, "169.254.169.254"):
            ip("-n", name, "address", "add", f"{address}/32", "dev", "lo")
        for address in (OK6, BEHIND_NAT):
            ip("-n", name, "address", "add", f"{address}/128", "dev", "lo")
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        stack.callback(os.close, home)
        enter_network(f"/run/netns/{name}")
        try:
            server = stack.enter_context(upstream())
            stub = stack.enter_context(upstream(STUB))
            made = Town(name, server)
            for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                listener = socket.socket(family)
                stack.callback(listener.close)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((host, PORT))
                listener.listen(64)
                threading.Thread(target=_serve, args=(listener, made.came), daemon=True).start()
        finally:
            enter_network(f"/proc/self/fd/{home}")
        server.records = stub.records = dict(RECORDS)
        for target, text in (
            ("/etc/resolv.conf", f"nameserver {HOST}\n"),
            ("/etc/hosts", f"127.0.0.1 localhost\n{INTERN} intern.test\n"),
        ):
            made.files[target] = folder / Path(target).name
            made.files[target].write_text(text)
        yield made


@pytest.fixture(scope="module")
def box(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox() as made:
        made.prefix = town.prefix
        made.write_profile("names", PROFILE)
        build = ["musl-gcc", "-static", "-o", str(made.world.project / "resolve"), str(ACTORS / "resolve.c")]
        subprocess.run(build, check=True)
        go = {"CGO_ENABLED": "0", "GO111MODULE": "off", "GOCACHE": str(tmp_path_factory.mktemp("go"))}
        build = ["go", "build", "-o", str(made.world.project / "resolve-go"), str(ACTORS / "resolve.go")]
        subprocess.run(build, env=os.environ | go, check=True)
        yield made


@dataclass
class Round:
    """All clients, once outside and once inside, each with an allowed name and with another one."""

    control: dict[str, Json]
    guarded: dict[str, Json]
    asked_guarded: list[str]
    events: list[Json]


def _script(names: Sequence[str]) -> str:
    """A Python program that runs every client with every name and prints what became of it."""
    return (
        "import json, subprocess\n"
        f"clients = {CLIENTS!r}\n"
        "for name in " + repr(list(names)) + ":\n"
        "    for client, words in clients.items():\n"
        "        done = subprocess.run(['sh', '-c', words.replace('NAME', name)], capture_output=True, text=True)\n"
        "        print(json.dumps([name, client, done.returncode, done.stdout]), flush=True)\n"
    )


def _results(finished: Finished) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for line in finished.out.splitlines():
        with contextlib.suppress(ValueError):
            name, client, code, out = json.loads(line)
            found[f"{client} {name}"] = {"code": code, "out": out}
    assert found, finished.err
    return found


@pytest.fixture(scope="module")
def fought(town: Town, box: Sandbox) -> Round:
    names = ["ok.test", "evil.test"]
    (box.world.project / "clients.py").write_text(_script(names))
    command = ["python3", "clients.py"]
    control = _results(box.control(command))
    town.server.asked.clear()
    guarded = _results(box.run(command))
    return Round(control, guarded, town.server.names(), box.events())


@pytest.mark.parametrize("client", CLIENTS)
def test_an_allowed_name_works_with_everyday_clients(fought: Round, client: str) -> None:
    done = fought.guarded[f"{client} ok.test"]
    if client == "git":  # the server is no repository; it was reached
        return
    assert done["code"] == 0, done
    assert OK in done["out"] or OK6 in done["out"] or "hello" in done["out"]


@pytest.mark.parametrize("client", CLIENTS)
def test_another_name_is_refused_to_all_of_them(fought: Round, client: str) -> None:
    if client not in NOBODY_THERE:
        assert fought.control[f"{client} evil.test"]["code"] == 0 or client == "git"
    done = fought.guarded[f"{client} evil.test"]
    assert done["code"] != 0, done
    assert EVIL not in done["out"]


def test_the_server_outside_saw_no_label_of_what_no_rule_names(town: Town, fought: Round) -> None:
    assert "ok.test" in fought.asked_guarded
    assert not [name for name in fought.asked_guarded if "evil" in name]
    assert not [text for text in town.came if "Host: evil" in text and text.startswith(OK)]


def test_every_question_is_on_record_with_who_asked(fought: Round) -> None:
    told = [event for event in fought.events if event["kind"] == "dns"]
    refused = {event["comm"] for event in told if event["verdict"] == "deny" and event["host"] == "evil.test"}
    assert {"getent", "python3", "curl", "wget", "resolve", "resolve-go", "nc"} <= refused, refused
    allowed = [event for event in told if event["verdict"] == "allow" and event["host"] == "ok.test"]
    assert any(OK in event["detail"] for event in allowed)
    assert "ok.test" in allowed[0]["rule"]["text"]


def test_a_connection_is_on_record_with_the_name(fought: Round) -> None:
    connected = [event for event in fought.events if event["kind"] == "net" and event.get("address") in (OK, OK6)]
    assert connected
    assert {event["host"] for event in connected} == {"ok.test"}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def repository(town: Town, tmp_path: Path) -> Iterator[Path]:
    """A git repository at https://git.wild.test:8443/r.git, as files; the certificate that it shows."""
    work = tmp_path / "work"
    shown = certificate(tmp_path, "git.wild.test", "evil.test")
    for line in (
        f"git init -q {work}",
        f"git -C {work} -c user.name=n -c user.email=e commit -q --allow-empty -m There",
        f"git clone -q --bare {work} {tmp_path}/www/r.git",
        f"git -C {tmp_path}/www/r.git update-server-info",
    ):
        subprocess.run(line.split(), check=True, capture_output=True)
    handler = functools.partial(_Quiet, directory=str(tmp_path / "www"))
    with site(town.name, ("0.0.0.0", 8443), handler, shown):
        yield shown[0]


def test_git_clones_over_https_from_an_allowed_name_only(town: Town, box: Sandbox, repository: Path) -> None:
    town.server.records |= {"git.wild.test": [f"60 A {OK}"]}
    certificate = box.world.project / "ca.pem"
    shutil.copy(repository, certificate)
    clone = "git -c http.sslCAInfo=ca.pem clone -q https://{host}:8443/r.git {host} && git -C {host} log --format=%s"
    box.write_profile("names", PROFILE.replace(f'"*.wild.test:{PORT}"', '"*.wild.test:8443"'))
    try:
        for host, code in (("git.wild.test", 0), ("evil.test", 128)):
            outside = box.control(["sh", "-c", clone.format(host=host)])
            assert outside.out == "There\n", outside.err
            shutil.rmtree(box.world.project / host)
            inside = box.run(["sh", "-c", clone.format(host=host)])
            assert (inside.code, inside.out) == (code, "" if code else "There\n"), inside.err
            if code:
                assert f"resolve host: {host}" in inside.err
    finally:
        box.write_profile("names", PROFILE)
    reached = [event for event in box.events() if event["kind"] == "net" and event.get("port") == 8443]
    assert reached == []


# --- around it -----------------------------------------------------------------------------------------------------

TRY = """
import json, os, socket, subprocess, sys
def reach(host, port=8080, kind=socket.SOCK_STREAM):
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as sock:
            sock.settimeout(5)
            if kind == socket.SOCK_DGRAM:
                sock.sendto(b"x", (host, port))
                return "sent"
            sock.connect((host, port))
            sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            return sock.recv(100).decode()[:12]
    except OSError as error:
        return type(error).__name__ + ": " + str(error)
def look_up(name):
    try:
        return socket.gethostbyname(name)
    except OSError as error:
        return str(error)
def local(path):
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            return "connected"
    except OSError as error:
        return str(error)
"""


def attempt(box: Sandbox, code: str, *, guarded: bool = True, options: Sequence[str] = ()) -> list[str]:
    """The lines that a program printed; it has the functions of TRY."""
    (box.world.project / "try.py").write_text(TRY + code)
    command = ["python3", "try.py"]
    done = box.run(command, options=options) if guarded else box.control(command)
    assert done.code == 0, done.err
    return done.out.splitlines()


def denied(box: Sandbox, **wanted: object) -> list[Json]:
    return [e for e in box.denials() if all(e.get(key) == value for key, value in wanted.items())]


def test_an_address_is_closed_until_its_name_was_asked_for_and_open_only_on_its_port(box: Sandbox) -> None:
    code = f"print(reach({OK!r})); print(look_up('ok.test')); print(reach({OK!r})); print(reach({OK!r}, 853))"
    assert attempt(box, code, guarded=False)[0] == "HTTP/1.0 200"
    before, address, after, elsewhere = attempt(box, code)
    assert before.startswith("PermissionError")
    assert (address, after) == (OK, "HTTP/1.0 200")
    assert elsewhere.startswith("PermissionError"), "names over TLS have a port of their own, and no rule"
    assert denied(box, kind="net", address=OK, port=PORT)
    assert denied(box, kind="net", address=OK, port=853)[0]["host"] == "ok.test"


def test_an_address_that_a_rule_denies_stays_denied_whatever_name_leads_there(box: Sandbox) -> None:
    address, reached = attempt(box, f"print(look_up('denied.wild.test')); print(reach({OTHER!r}))")
    assert (address, reached.partition(":")[0]) == (OTHER, "PermissionError")
    (event,) = denied(box, kind="net", address=OTHER)
    assert event["host"] == "denied.wild.test"
    assert OTHER in event["rule"]["text"]


@pytest.mark.parametrize(("name", "address"), [("rebind.test", "127.0.0.1"), ("meta.test", "169.254.169.254")])
def test_a_name_that_leads_inside_opens_nothing(box: Sandbox, name: str, address: str) -> None:
    code = f"print(look_up({name!r})); print(reach({address!r}))"
    assert attempt(box, code, guarded=False) == [address, "HTTP/1.0 200"]
    told, reached = attempt(box, code)
    assert address not in told
    assert reached.startswith("PermissionError")
    (event,) = denied(box, kind="dns", host=name)
    assert address in event["detail"]


def test_a_rule_that_denies_a_name_wins_over_a_wildcard(box: Sandbox) -> None:
    told = attempt(box, "print(look_up('a.wild.test')); print(look_up('shut.wild.test'))")
    assert told[0] == OK
    assert OK not in told[1]
    (event,) = denied(box, kind="dns", host="shut.wild.test")
    assert "shut.wild.test" in event["rule"]["text"]


def test_an_inner_address_is_open_on_the_ports_of_the_rule_that_names_it_and_on_no_other(box: Sandbox) -> None:
    code = f"print(look_up('rebind.test')); print(reach('rebind.test', {PORT}))"
    assert attempt(box, code, guarded=False) == ["127.0.0.1", "HTTP/1.0 200"]
    assert attempt(box, code, options=["--net", f"localhost:{PORT}"]) == ["127.0.0.1", "HTTP/1.0 200"]
    for other in ("localhost:3000", "0.0.0.0/0:443"):
        told = attempt(box, code, options=["--net", other])[1]
        assert told.startswith("PermissionError"), other
        assert denied(box, kind="net", address="127.0.0.1", port=PORT), other


@pytest.mark.parametrize("words", ["0.0.0.0/0", "localhost:53"])
def test_a_stub_of_the_host_is_asked_for_any_name_where_a_rule_by_address_opens_it(
    town: Town, box: Sandbox, words: str
) -> None:
    conf = town.files["/etc/resolv.conf"]
    before = conf.read_text()
    conf.write_text(f"nameserver {STUB}\n")
    try:
        assert attempt(box, "print(look_up('evil.test'))", options=["--net", words]) == [EVIL]
        assert attempt(box, "print(look_up('evil.test'))") != [EVIL]
        assert attempt(box, "print(look_up('ok.test'))") == [OK]
    finally:
        conf.write_text(before)


def test_an_alias_of_a_denied_name_is_denied(box: Sandbox) -> None:
    kin, alias = attempt(box, "print(look_up('kin.wild.test')); print(look_up('alias.wild.test'))")
    assert kin == OK
    assert OK not in alias
    (event,) = denied(box, kind="dns", host="alias.wild.test")
    assert "shut.wild.test" in event["rule"]["text"]


def test_a_denied_address_is_denied_by_way_of_a_gateway_too(box: Sandbox) -> None:
    code = f"print(socket.getaddrinfo('nat.wild.test', {PORT})[0][4][0]); print(reach('64:ff9b::cb00:7102'))"
    address, reached = attempt(box, code, guarded=False)
    assert reached == "HTTP/1.0 200"
    told = attempt(box, code)
    assert told[0] == address
    assert told[1].startswith("PermissionError")
    events = denied(box, kind="net", address=address, port=PORT)
    assert events
    assert all(OTHER in event["rule"]["text"] for event in events)


SPEAK = """
question = bytes.fromhex("000701000001000000000000046576696c04746573740000010001")  # evil.test A
with open("/proc/net/udp") as lines:
    places = [line.split()[1].split(":") for line in lines if ":" in line.split()[1]]
for port in sorted(int(port, 16) for address, port in places if address == "0100007F"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(question, ("127.0.0.1", port))
            print("sent")
        except OSError as error:
            print(type(error).__name__)
"""


def test_a_session_has_no_use_of_the_resolver_of_another_one(box: Sandbox) -> None:
    with puppet(box) as first:
        assert attempt(box, SPEAK, guarded=False) == ["sent"]
        told = attempt(box, SPEAK, options=["--net", "localhost"])
        assert sorted(told) == ["PermissionError", "sent"]  # the other one is its own
        (event,) = denied(box, kind="net", address="127.0.0.1")
        assert event["detail"].startswith("it answers names of another session")
        first.end()
        assert not [e for e in first.events("--kind", "dns") if e["host"] == "evil.test"]


def test_everyday_questions_are_routine(box: Sandbox) -> None:
    attempt(box, f"import socket; print(socket.getnameinfo(({INTERN!r}, 1), 0)); print(look_up('secret.elsewhere'))")
    asked = {str(event["host"]): str(event["detail"]) for event in denied(box, kind="dns")}
    assert asked.pop("9.0.66.10.in-addr.arpa", "quiet").startswith("quiet")  # the hosts file may answer it
    assert not asked.pop("secret.elsewhere").startswith("quiet")


def test_the_hosts_file_counts_where_a_rule_allows_the_name(box: Sandbox) -> None:
    code = f"print(look_up('intern.test')); print(reach({INTERN!r})); print(reach({INTERN!r}, 22))"
    address, reached, other = attempt(box, code)
    assert (address, reached, other.partition(":")[0]) == (INTERN, "HTTP/1.0 200", "PermissionError")
    assert denied(box, kind="net", address=INTERN, port=22)


def test_in_audit_names_are_asked_for_and_what_no_rule_allows_is_told(box: Sandbox) -> None:
    address, reached = attempt(box, f"print(look_up('evil.test')); print(reach({EVIL!r}))", options=["--audit"])
    assert (address, reached) == (EVIL, "HTTP/1.0 200")
    events = [event for event in box.events() if event["verdict"] == "audit" and event.get("host") == "evil.test"]
    assert {event["kind"] for event in events} == {"dns", "net"}


DOORS = (
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/systemd/resolve/io.systemd.Resolve.Monitor",
    "/run/dbus/system_bus_socket",
    "/run/nscd/socket",
    "/run/avahi-daemon/socket",
)
# Multicast DNS, LLMNR, resolvers that answer over HTTPS, and names over TLS at an address that a name has opened on another
# port: address, port, type.
FAR_DOORS = (
    *(("224.0.0.251", 5353, 2), ("224.0.0.252", 5355, 2), ("1.1.1.1", 443, 1), ("8.8.8.8", 443, 2)),
    *((OK, 853, 1), (OK, 853, 2), (OK, 5355, 1)),
)


def test_other_doors_to_a_resolver_are_closed(box: Sandbox) -> None:
    code = "\n".join(
        [
            *(f"print(local({door!r}))" for door in DOORS),
            "print(look_up('ok.test'))",
            *(f"print(reach{door!r})" for door in FAR_DOORS),
            "look_up('mozilla.cloudflare-dns.com')",
        ]
    )
    with contextlib.ExitStack() as stack:
        there = []
        for door in DOORS:
            if not Path(door).exists():
                made = not Path(door).parent.exists()
                Path(door).parent.mkdir(parents=True, exist_ok=True)
                listener = stack.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(door)
                os.chmod(door, 0o666)
                listener.listen(8)
                stack.callback(shutil.rmtree if made else os.unlink, Path(door).parent if made else door)
                there.append(door)
        outside = attempt(box, code, guarded=False)
        assert outside[: len(DOORS)].count("connected") >= len(there)
        assert not [line for line in outside[-len(FAR_DOORS) :] if "PermissionError" in line]
        inside = attempt(box, code)
    assert "connected" not in inside and inside[len(DOORS)] == OK
    assert all(line.startswith("PermissionError") for line in inside[-len(FAR_DOORS) :]), inside
    events = box.denials()
    for address, port, kind in FAR_DOORS:
        word = "tcp" if kind == 1 else "udp"
        found = [e for e in events if (e.get("address"), e.get("port"), e.get("protocol")) == (address, port, word)]
        assert found and DOOR in found[0]["detail"], (address, port, found)
    over_https = [e for e in events if e.get("host") == "mozilla.cloudflare-dns.com"]
    assert over_https and all(DOOR in e["detail"] for e in over_https)
    for door in there:
        found = [e for e in events if e["kind"] == "unix" and e.get("path") == door]
        # `base` denies the system bus on purpose, and says why itself.
        assert found and (DOOR in found[0].get("detail", "") or found[0]["rule"]["text"] == "sockets deny /run/dbus")


def test_a_rule_without_a_port_opens_no_names_over_tls_and_one_that_names_the_port_does(box: Sandbox) -> None:
    profile = PROFILE.replace(f"ok.test:{PORT}", "ok.test")
    code = f"print(look_up('ok.test')); print(reach({OK!r})); print(reach({OK!r}, 853)); print(reach({OK!r}, 854))"
    try:
        box.write_profile("names", profile)
        address, page, tls, beside = attempt(box, code)
        assert (address, page) == (OK, "HTTP/1.0 200")
        assert tls.startswith("PermissionError") and beside.startswith("ConnectionRefused")
        (refused,) = denied(box, kind="net", address=OK)
        assert refused["port"] == 853 and DOOR in refused["detail"]
        box.write_profile("names", profile.replace('    - "ok.test"\n', '    - "ok.test"\n    - "ok.test:853"\n'))
        assert attempt(box, code)[2].startswith("ConnectionRefused")
    finally:
        box.write_profile("names", PROFILE)


def test_a_resolver_that_is_killed_opens_nothing_and_comes_back(town: Town, box: Sandbox) -> None:
    code = f"""
import time
print(look_up("ok.test"))
open("ready", "w").close()
while not os.path.exists("killed"): time.sleep(0.02)
print(reach({EVIL!r}))
print(look_up("evil.test"))
print(look_up("a.wild.test"), reach({OK!r}))
"""
    for name in ("ready", "killed"):
        (box.world.project / name).unlink(missing_ok=True)
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not (box.world.project / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[-1:] == [RESOLVER]:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
        (box.world.project / "killed").touch()

    thread = threading.Thread(target=kill)
    thread.start()
    first, closed, evil, again = attempt(box, code)
    thread.join()
    assert len(killed) == 1
    assert first == OK
    assert closed.startswith("PermissionError")
    assert EVIL not in evil
    assert again == f"{OK} HTTP/1.0 200"
    assert denied(box, kind="net", address=EVIL, port=PORT) and denied(box, kind="dns", host="evil.test")


def test_there_is_a_resolver_from_the_first_question_to_the_end_of_the_session(box: Sandbox) -> None:
    with puppet(box) as held:
        assert held.ask("connect", EVIL, PORT) == "EPERM"
        assert not resolvers()
        assert held.ask("connect", "ok.test", PORT) == ""
        assert len(resolvers()) == 1
        held.end()
    assert not resolvers()


def resolvers() -> list[int]:
    """The resolvers of this tree's sessions, of which there is one at a time."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if (process.info["cmdline"] or [])[-1:] == [RESOLVER]:
                found.append(process.pid)
    return found


def await_file(path: Path) -> None:
    deadline = time.monotonic() + RUN_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def test_when_the_supervisor_is_killed_questions_go_nowhere_and_the_rules_hold(box: Sandbox) -> None:
    code = f"""
import time
def ask():
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", ("203.0.113.77", 53))
        return "sent"
    except OSError as error:
        return type(error).__name__
print(look_up("ok.test"))
open("ready", "w").close()
while not os.path.exists("killed"): time.sleep(0.02)
until = time.monotonic() + 30
while ask() == "sent" and time.monotonic() < until: time.sleep(0.1)
with open("result.new", "w") as out:
    print(ask(), look_up("a.wild.test") == {OK!r}, reach({EVIL!r}).partition(":")[0], file=out)
os.rename("result.new", "result")
"""
    project = box.world.project
    for name in ("ready", "killed", "result"):
        (project / name).unlink(missing_ok=True)
    (project / "try.py").write_text(TRY + code)
    words = ["run", "-q", "-p", "names", "-w", str(project), "--", "python3", "try.py"]
    with subprocess.Popen(
        [*box.prefix, *mcpguard_command(), *words],
        cwd=project,
        env=box.world.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as supervisor:
        await_file(project / "ready")
        supervisor.kill()
    (project / "killed").touch()
    await_file(project / "result")
    assert (project / "result").read_text().split() == ["PermissionError", "False", "PermissionError"]
    deadline = time.monotonic() + RUN_SECONDS
    while resolvers():
        assert time.monotonic() < deadline, "a resolver outlived its supervisor"
        time.sleep(0.05)


def test_a_name_that_is_allowed_while_the_session_runs_resolves_and_is_reached(box: Sandbox) -> None:
    with puppet(box) as held:
        assert "not known" in held.ask("connect", "evil.test", PORT)
        outcome = held.approve(("network", "allow", f"evil.test:{PORT}"))
        assert held.ask("connect", "evil.test", PORT) == ""
        assert held.ask("connect", EVIL, 22) == "EPERM"
        held.end()
    assert [one["port"] for one in held.events("--kind", "net", "--verdict", "deny")] == [22]
    assert outcome.now == (f"network allow evil.test:{PORT}",)
    told = [(event["verdict"], event["rule"]["text"]) for event in held.events("--kind", "dns")]
    assert told[0] == ("deny", "no rule allows it")
    assert told[-1] == ("allow", f"network allow evil.test:{PORT}")


def test_why_and_the_log_speak_of_names(box: Sandbox) -> None:
    attempt(
        box,
        f"print(look_up('a.wild.test')); print(look_up('evil.test')); print(reach({OK!r})); print(reach({OK!r}, 22))",
    )

    def why(target: str) -> tuple[int, str]:
        done = box.mcpguard("why", "-p", "names", "connect", target)
        return done.code, done.out

    for target, code, words in (
        (f"a.wild.test:{PORT}", 0, f"while its answer holds, now {OK}"),
        ("a.wild.test:22", 1, "a rule allows it on other ports"),
        ("a.wild.test:853", 1, DOOR),
        (f"evil.test:{PORT}", 1, "nobody outside is asked"),
        (f"shut.wild.test:{PORT}", 1, "network deny shut.wild.test"),
        (f"rebind.test:{PORT}", 1, "never opens that"),
        (f"denied.wild.test:{PORT}", 1, f"is {OTHER}"),
        (f"{OK}:{PORT}", 1, "a name with a rule that leads there opens it"),
        ("203.0.113.53:53", 1, "a resolver of the session's own"),
        ("1.1.1.1:443", 1, DOOR),
        ("dns.google:443", 1, DOOR),
    ):
        assert why(target)[0] == code and words in " ".join(why(target)[1].split()), (target, why(target))
    for pattern, names, kinds in (
        ("*.wild.test", {"a.wild.test"}, {("dns", "allow"), ("net", "allow"), ("net", "deny")}),
        ("?.wild.*", {"a.wild.test"}, {("dns", "allow"), ("net", "allow"), ("net", "deny")}),
        ("evil.*", {"evil.test"}, {("dns", "deny")}),
        (
            "*.test",
            {"a.wild.test", "evil.test"},
            {("dns", "allow"), ("dns", "deny"), ("net", "allow"), ("net", "deny")},
        ),
        ("wild.test", set(), set()),
    ):
        found = box.events(None, "--host", pattern)
        assert {event["host"] for event in found} == names, pattern
        assert {(event["kind"], event["verdict"]) for event in found} == kinds, pattern
