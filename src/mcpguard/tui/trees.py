"""The two trees of the screen: processes, and touched paths. They draw what `processes` and `totals` know."""

from __future__ import annotations

import time
from typing import ClassVar, NamedTuple

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Tree
from textual.widgets.tree import TreeNode

from mcpguard.events.format import printable
from mcpguard.session.process_tree import Process, ProcessTable
from mcpguard.tui import columns
from mcpguard.tui.totals import Place

# Children of one folder that are shown; the others are counted.
MAX_CHILDREN = 300
# Processes of one parent: the newest of those that run, and where there is room, of those that have ended.
MAX_PROCESSES = 40
# Processes that started one another, one below the other; the rest is told in words.
MAX_DEPTH = 24
_SHORTEST_NAME, _LONGEST_NAME = 8, 200


class ProcessTree(Tree[int]):
    """What runs, and what was refused to whom; what has ended quietly is a number."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__("processes", id=id)
        self.show_root = False
        self.guide_depth = 2

    def show(self, table: ProcessTable) -> None:
        """Draw the table as it is now."""
        roots = [process for pid in table.roots if (process := table.get(pid))]
        self._fill(self.root, roots, 0, table)
        self.root.expand()

    def _fill(
        self, node: TreeNode[int], processes: list[Process], ended: int, table: ProcessTable, depth: int = 0
    ) -> None:
        if depth > MAX_DEPTH:
            processes, deeper = [], len(processes)
        else:
            deeper = 0
        room = self.scrollable_content_region.width - (depth + 1) * self.guide_depth
        there = {child.data: child for child in node.children if child.data}
        shown, left_out = _most_telling(processes, table)
        more = sum(process.ended_ns is None for process in left_out)
        refused = sum(process.ended_ns is not None and process.denied > 0 for process in left_out)
        ended += len(left_out) - more
        wanted = {process.pid for process in shown}
        for child in list(node.children):
            if child.data not in wanted and (child.data or not (ended or more or deeper)):
                child.remove()
        rest = next((child for child in node.children if not child.data), None)
        for process in shown:
            children, folded = table.shown_children(process)
            label = _process(process, room)
            child = there.get(process.pid) or node.add(label, data=process.pid, expand=True, before=rest)
            if child.label != label:
                child.set_label(label)
            child.allow_expand = bool(children or folded)
            self._fill(child, children, folded, table, depth + 1)
        if ended or more or deeper:
            words = [
                f"{more} more run" if more else "",
                f"{deeper} below" if deeper else "",
                f"{ended} ended" if ended else "",
                f"{refused} of them were refused something" if refused else "",
            ]
            text = Text(", ".join(word for word in words if word), style="dim")
            (rest.set_label(text) if rest else node.add_leaf(text))


def _most_telling(processes: list[Process], table: ProcessTable) -> tuple[list[Process], list[Process]]:
    """As many as are shown, in their order, and the others: what has ended makes room for what runs."""
    if len(processes) <= MAX_PROCESSES:
        return processes, []
    alive = {process.pid for process in processes if table.is_alive(process)}
    ranked = sorted(processes, key=lambda process: process.pid in alive)[-MAX_PROCESSES:]
    kept = {process.pid for process in ranked}
    return [one for one in processes if one.pid in kept], [one for one in processes if one.pid not in kept]


def _process(process: Process, room: int) -> Text:
    """A line of so many columns: its name and arguments are cut, so that what is known of it stays in sight."""
    ended = process.ended_ns is not None
    denied = f"{process.denied} denied " if process.denied else ""
    known = Text(f" {process.pid}", style="dim")
    known.append(" ended" if ended else f" {_age(time.time_ns() - process.started_ns)}")
    if not ended and process.cpu is not None and process.memory is not None:
        known.append(f" {process.cpu:.0f}% {process.memory >> 20}M", style="not dim cyan")
    name = columns.cut_end(
        printable(process.name[:_LONGEST_NAME]), max(_SHORTEST_NAME, room - len(denied) - known.cell_len)
    )
    text = Text(no_wrap=True)
    text.append(denied, style="bold red").append(name, style="dim" if ended else "")
    return text.append_text(known)


def _age(ns: int) -> str:
    seconds = max(0, ns // 1_000_000_000)
    if seconds < 60:
        return f"{seconds}s"
    if seconds >= 86400:
        return f"{seconds // 86400}d"
    return f"{seconds // 60}m" if seconds < 3600 else f"{seconds // 3600}h{seconds % 3600 // 60:02}m"


class Shown(NamedTuple):
    """A line of the tree: the first name of its chain, the place at the chain's end, and that one's path."""

    first: str
    place: Place
    path: str


class FilesTree(Tree[Shown]):
    """Touched paths. Folders are filled when they are opened; a chain of folders with one child is one line."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "Open", key_display="enter")]

    class Chosen(Message):
        """A path that has nothing below it."""

        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__("/", id=id)
        self.show_root = False
        self.guide_depth = 2

    def show(self, root: Place) -> None:
        """Draw what is new in every open folder."""
        self.root.data = Shown("/", root, "")
        self.root.expand()
        self._fill(self.root)

    def on_tree_node_selected(self, event: Tree.NodeSelected[Shown]) -> None:
        if event.node.data is not None and not event.node.allow_expand:
            self.post_message(self.Chosen(event.node.data.path))

    def on_tree_node_expanded(self, event: Tree.NodeExpanded[Shown]) -> None:
        self._fill(event.node)

    def _fill(self, node: TreeNode[Shown]) -> None:
        if node.data is None:
            return
        there = {child.data.first: child for child in node.children if child.data}
        # Refused ones first, then by name.
        places = node.data.place.children.values()
        found = sorted(places, key=lambda one: (not (one.denied or one.denied_below), one.name))
        for one in found[:MAX_CHILDREN]:
            label, names, end = _folded(one)
            line = Shown(one.name, end, f"{node.data.path}/{names}")
            child = there.get(one.name) or node.add(label, data=line)
            if child.data is None or child.data.place is not end:  # a chain that got a branch
                child.remove_children()
                child.data = line
            if child.label != label:
                child.set_label(label)
            child.allow_expand = bool(end.children)
            if child.is_expanded:
                self._fill(child)
        if len(found) > MAX_CHILDREN and not any(child.data is None for child in node.children):
            node.add_leaf(Text(f"and {len(found) - MAX_CHILDREN} others: mcpguard log --path", style="dim"))


def _folded(place: Place) -> tuple[Text, str, Place]:
    names = [place.name]
    while len(place.children) == 1 and not place.marks:
        (place,) = place.children.values()
        names.append(place.name)
    text = Text(no_wrap=True)
    text.append(printable("/".join(names)) + ("/" if place.children else ""))
    if place.denied_below:
        text.append(f"  {place.denied_below} denied below", style="red")
    if place.marks:
        text.append(f"  {place.marks}", style="bold red" if place.denied else "green" if place.written else "dim")
    return text, "/".join(names), place
