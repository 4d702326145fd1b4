"""Findings as SARIF 2.1.0, which code hosts and editors show beside the file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mcpguard import __version__
from mcpguard.catalogue.findings import OWASP, RULES, Finding, Rule
from mcpguard.errors import one_line

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_BASE = "PROJECT"
_NAMES = list(RULES)


def document(findings: Sequence[Finding], project: Path) -> dict[str, Any]:
    """One run with all of them; files of the project are named relative to it."""
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "mcpguard",
                        "version": __version__,
                        "rules": [_rule(rule) for rule in RULES.values()],
                    }
                },
                "originalUriBaseIds": {_BASE: {"uri": f"file://{quote(str(project).rstrip('/'))}/"}},
                "results": [_result(one, project) for one in findings],
            }
        ],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.name,
        "shortDescription": {"text": rule.says},
        "help": {"text": rule.do},
        "defaultConfiguration": {"level": rule.level.value},
        "properties": {"tags": ["security", "mcp", rule.owasp], "owasp": f"{rule.owasp}:2025 {OWASP[rule.owasp]}"},
    }


def _result(found: Finding, project: Path) -> dict[str, Any]:
    about = f"{found.server}: " if found.server else ""
    identity = "\0".join((found.rule.name, found.file, found.server, found.detail))
    return {
        "ruleId": found.rule.name,
        "ruleIndex": _NAMES.index(found.rule.name),
        "level": found.rule.level.value,
        "message": {"text": one_line(f"{about}{found.rule.says}: {found.detail}. {found.rule.do}.")},
        "locations": [_location(found, project)],
        "partialFingerprints": {"mcpguard/v1": hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()},
        "properties": {"owasp": f"{found.rule.owasp}:2025", "client": found.client, "scope": found.scope},
    }


def _location(found: Finding, project: Path) -> dict[str, Any]:
    if not found.file.startswith("/"):  # a variable
        return {"logicalLocations": [{"name": one_line(found.file), "kind": "variable"}]}
    path = Path(found.file)
    inside = path.is_relative_to(project)
    text = str(path.relative_to(project)) if inside else str(path)
    uri = quote(text.encode(errors="surrogateescape"))
    place: dict[str, Any] = {
        "artifactLocation": {"uri": uri, "uriBaseId": _BASE} if inside else {"uri": f"file://{uri}"}
    }
    if found.line:
        place["region"] = {"startLine": found.line}
    return {"physicalLocation": place}
