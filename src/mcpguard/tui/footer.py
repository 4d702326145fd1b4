"""The keys that do something now: all of them, in as many lines as they need."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from textual.containers import Horizontal
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Footer


class Keys(Footer):
    """The library's own footer is one line: what has no room in it is cut off."""

    def __init__(self) -> None:
        super().__init__(compact=True)
        self._width = 0

    def compose(self) -> Iterator[Widget]:
        line: list[Widget] = []
        used = 0
        for key in super().compose():
            width = cell_len(f"{getattr(key, 'key_display', '')} {getattr(key, 'description', '')}")
            if line and used + width > (self._width or self.app.size.width):
                yield Horizontal(*line)
                line, used = [], 0
            line.append(key)
            used += width + 1
        if line:
            yield Horizontal(*line)

    def on_resize(self, event: Resize) -> None:
        if event.size.width != self._width:
            self._width = event.size.width
            self.call_after_refresh(self.recompose)
