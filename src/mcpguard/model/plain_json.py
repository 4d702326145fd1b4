"""JSON as `json` reads and writes it, without the five expressions that it compiles first: a launch waits for those in two
processes. They serve its reader and writer in Python; these are the ones in C, which it takes itself where they are there.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SPACE = " \t\n\r"


def _refuse(value: object) -> Any:
    raise TypeError(f"an object of type {type(value).__name__} has no JSON")


try:
    from _json import encode_basestring, encode_basestring_ascii, make_encoder, make_scanner

    class _Reading:
        """What the reader asks for; the names are Python's."""

        strict = True
        object_hook = object_pairs_hook = None
        parse_float, parse_int = float, int
        parse_constant = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}.__getitem__
        memo: dict[str, str] = {}  # noqa: RUF012 - never looked at here

    _scan: Callable[[str, int], tuple[Any, int]] = make_scanner(_Reading())  # type: ignore[arg-type]

    def loads(text: str | bytes) -> Any:
        """The value that a text, UTF-8, stands for.

        Raises:
            ValueError: it is no JSON.
        """
        read = (text.decode("utf-8", "surrogatepass") if isinstance(text, bytes | bytearray) else text).lstrip(_SPACE)
        try:
            value, end = _scan(read, 0)
        except StopIteration as nothing:
            raise ValueError(f"no JSON at character {nothing.value}") from None
        if read[end:].strip(_SPACE):
            raise ValueError(f"more than one value: character {end}")
        return value

    def dumps(
        value: object,
        *,
        separators: tuple[str, str] = (", ", ": "),
        ensure_ascii: bool = True,
        default: Callable[[Any], Any] = _refuse,
    ) -> str:
        """The text of a value; arguments as those of `json.dumps`.

        Raises:
            TypeError, ValueError: it has none.
        """
        item, key = separators
        text = encode_basestring_ascii if ensure_ascii else encode_basestring
        if isinstance(value, str):
            return text(value)
        return "".join(make_encoder({}, default, text, None, key, item, False, False, True)(value, 0))

    if loads(dumps([{"a": 1.5, "b": [None, True, "\x00"]}])) != [{"a": 1.5, "b": [None, True, "\x00"]}]:
        raise ImportError("this Python has another reader or writer")
except (ImportError, AttributeError, TypeError, ValueError):
    from json import dumps, loads  # type: ignore[assignment]

__all__ = ["dumps", "loads"]
