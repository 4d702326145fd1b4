"""The help screen of `watch`."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

TEXT = """\
[b]Move[/b]      up down page home end (k j g G): choose an event; end follows the newest
[b]Tabs[/b]      1 Events  2 Files  3 Network  4 Executions  5 MCP  6 Rules  7 Questions
[b]space[/b]     pause or follow
[b]d[/b]         the next verdict: denied, audited, allowed, all
[b]/[/b]         filter   [b]escape[/b] takes it away
[b]enter[/b]     show or hide the details of the chosen event; on a row of another tab: its events
[b]a[/b]         allow what was refused: o once, s for the session, w in your own profile, x leave it refused
[b]7[/b]         questions of run --ask: o, s, w, x answer, n goes to the next open one
[b]p[/b]         show or hide the process tree; enter on a process: its events
[b]c[/b]         copy the event as JSON (OSC 52; in tmux: set -g set-clipboard on)
[b]e[/b]         export what the filter matches, as JSON lines
[b]t[/b]         light or dark   [b]ctrl+p[/b] all commands   [b]q[/b] quit

[b]Filter words[/b]
verdict:deny          allow, deny or audit
kind:file             file, exec, net, dns, unix, mcp, process, loss
process:git           a program's name or path with * and ?, or a PID
path:~/.ssh           patterns as in a profile; a name alone matches at any depth
host:*.example.com    a host name or an address with * and ?
anything else         text somewhere in the event

The record of everything stays in the log: mcpguard log
"""


class HelpScreen(ModalScreen[None]):
    """Any of its keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter,space", "dismiss", "Close")]

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help"):
            yield Static(TEXT)
