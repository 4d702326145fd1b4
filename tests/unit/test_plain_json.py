"""Whatever `json` reads and writes is read and written the same."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.model import plain_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
SEPARATORS = [(", ", ": "), (",", ":")]


@given(values, st.sampled_from(SEPARATORS), st.booleans())
def test_values_are_written_as_json_writes_them_and_read_back(
    value: object, separators: tuple[str, str], ascii_only: bool
) -> None:
    written = plain_json.dumps(value, separators=separators, ensure_ascii=ascii_only)
    assert written == json.dumps(value, separators=separators, ensure_ascii=ascii_only)
    assert plain_json.loads(written) == value
    assert plain_json.loads(written.encode("utf-8", "surrogatepass")) == value


@given(st.text(st.sampled_from('{}[]",:\\ \t\n0123456789.eE+-truefalsn"NIy\x01'), max_size=24))
def test_a_text_is_read_or_refused_as_json_does(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError, match=r".+"):
            plain_json.loads(text)
    else:
        assert repr(plain_json.loads(text)) == repr(expected)


@pytest.mark.parametrize("text", [b"", b"  ", b"{} x", b"[1,]", b"\xff", b'"\n"', b"[" * 100_000])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    for reader in (json.loads, plain_json.loads):
        with pytest.raises((ValueError, RecursionError)):
            reader(text)


def test_what_has_no_text_is_refused_or_asked_for() -> None:
    circle: list[object] = []
    circle.append(circle)
    for writer in (json.dumps, plain_json.dumps):
        with pytest.raises(TypeError):
            writer({"a": object()})
        with pytest.raises(ValueError, match="Circular"):
            writer(circle)
        assert writer({"a": {1}}, default=sorted) == '{"a": [1]}'


def test_a_python_without_the_parts_in_c_takes_its_own() -> None:
    code = (
        "import sys; sys.modules['_json'] = None; sys.path.insert(0, sys.argv[1])\n"
        "from mcpguard.model import plain_json; import json\n"
        "assert plain_json.loads is json.loads and plain_json.dumps is json.dumps"
    )
    source = plain_json.__file__.rpartition("/mcpguard/")[0]
    subprocess.run([sys.executable, "-I", "-c", code, source], check=True)
