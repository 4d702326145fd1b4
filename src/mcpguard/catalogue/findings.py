"""What a scan can find: one table of rules, each with its place in the OWASP MCP Top 10 (2025)."""

from __future__ import annotations

import enum

from mcpguard.model.values import dataclass

OWASP = {
    "MCP01": "Token mismanagement and secret exposure",
    "MCP02": "Privilege escalation via scope creep",
    "MCP03": "Tool poisoning",
    "MCP04": "Supply chain attacks and dependency tampering",
    "MCP05": "Command injection and execution",
    "MCP06": "Intent flow subversion",
    "MCP07": "Insufficient authentication and authorization",
    "MCP08": "Lack of audit and telemetry",
    "MCP09": "Shadow MCP servers",
    "MCP10": "Context injection and over-sharing",
}


class Level(enum.StrEnum):
    """How much it matters; the words are SARIF's."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of finding.

    Attributes:
        name: stable.
        owasp: a key of OWASP.
        says: what is wrong, one sentence.
        do: what to do about it, one sentence.
    """

    name: str
    owasp: str
    level: Level
    says: str
    do: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        detail: what exactly, without secrets.
        file, line: where; line 0 where none can be named.
        server, client, scope: whose; server is empty where it is about a whole file.
    """

    rule: Rule
    detail: str
    file: str
    line: int
    server: str
    client: str
    scope: str


_RULES = (
    Rule(
        "literal-secret",
        "MCP01",
        Level.ERROR,
        "a secret is written out in the configuration",
        "take it from the environment (${NAME}) or the client's own store, and replace the secret: it may have been read",
    ),
    Rule(
        "readable-secret",
        "MCP01",
        Level.ERROR,
        "other users of this machine can read a file with a secret",
        "chmod 600 the file",
    ),
    Rule(
        "wide-root",
        "MCP02",
        Level.WARNING,
        "the server is given the whole home or the whole machine",
        "name the folders that it needs",
    ),
    Rule(
        "privileged-container",
        "MCP02",
        Level.ERROR,
        "the container of the server is given the machine",
        "start it without --privileged, the host's namespaces and the socket of the container engine",
    ),
    Rule(
        "container",
        "MCP08",
        Level.NOTE,
        "a container engine runs the server, outside of every session: no rule holds what it does, and no record tells of it",
        "run it without a container where you can; else give the container no more folders and networks than it needs",
    ),
    Rule(
        "auto-approval",
        "MCP02",
        Level.WARNING,
        "tools are called, or servers started, without a question",
        "take the setting out, or name the few tools that only read",
    ),
    Rule(
        "hidden-characters",
        "MCP03",
        Level.ERROR,
        "there are characters that nobody sees, and that models read",
        "do not use this server before you know why they are there",
    ),
    Rule(
        "unpinned-package",
        "MCP04",
        Level.WARNING,
        "the package has no exact version, so the next start may fetch another",
        "name the exact version: package@1.2.3, package==1.2.3, or a commit",
    ),
    Rule(
        "image-without-digest",
        "MCP04",
        Level.WARNING,
        "the image is not named by its digest, so the next start may fetch another",
        "name it as image@sha256:DIGEST",
    ),
    Rule(
        "download-and-run",
        "MCP04",
        Level.ERROR,
        "the command runs what it downloads, unseen",
        "download it once, read it, and start that file",
    ),
    Rule(
        "writable-program",
        "MCP05",
        Level.ERROR,
        "other users of this machine can change what the server runs",
        "take the right to write away from others, for the file and every folder above it",
    ),
    Rule(
        "program-in-project",
        "MCP05",
        Level.WARNING,
        "what the server runs lies in the project, where an agent can change it",
        "install it outside, or approve it with mcpguard: a change is refused until you approve it again",
    ),
    Rule(
        "code-by-variable",
        "MCP05",
        Level.WARNING,
        "a variable loads more code into the server",
        "take the variable out of the configuration",
    ),
    Rule(
        "helper-command",
        "MCP05",
        Level.WARNING,
        "the client runs another command for the server, which mcpguard does not look at",
        "read what it runs; better, give the client the value by a variable",
    ),
    Rule(
        "plain-http",
        "MCP07",
        Level.ERROR,
        "the server is called without encryption, so anybody on the way can read and change it",
        "use https://",
    ),
    Rule(
        "no-certificates",
        "MCP07",
        Level.ERROR,
        "the server does not check whom it talks to",
        "take the setting out, and give the server your own certificate authority if it needs one",
    ),
    Rule(
        "shadowed-name",
        "MCP09",
        Level.WARNING,
        "one name means different servers in different settings of a client, and only one of them is used",
        "give them different names, or remove one",
    ),
    Rule(
        "brought-by-repository",
        "MCP09",
        Level.WARNING,
        "the repository brought the server, and you have not approved it",
        "read its entry; mcpguard mcp approve NAME",
    ),
    Rule(
        "writable-settings",
        "MCP09",
        Level.ERROR,
        "other users of this machine can change which servers are declared",
        "take the right to write away from others, for the file and every folder above it",
    ),
    Rule(
        "repeated-key",
        "MCP09",
        Level.WARNING,
        "a key stands twice, and readers take the first or the last",
        "remove one of them",
    ),
    Rule(
        "unreadable-file",
        "MCP09",
        Level.WARNING,
        "the file cannot be read as its client would, so its servers are not known",
        "correct the file, or remove it",
    ),
)
RULES = {rule.name: rule for rule in _RULES}
