"""Rules added to the text of a profile: every other byte stays, and what is added is what is read."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.errors import ProfileError
from mcpguard.profile.amend import Addition, amend

READ = Addition("files", "read", "/new")
SAID = READ._replace(comment="git 2x")
FLOW = """\
# mine
name:   p
files:
  read: [   # what it reads
    /a,     # the first
    "/b"    # the last
    # nothing comes here
  ]

# of the network
network:
    allow:
    - a.test:443   # the model

    # a note on what is refused
    deny: [ 10.0.0.0/8 ]
# the end"""


@pytest.mark.parametrize(
    ("text", "addition", "expected"),
    [
        ("", READ, "files:\n  read:\n    - /new\n"),
        ("# only a word\n", READ, "# only a word\nfiles:\n  read:\n    - /new\n"),
        ("name: p", READ, "name: p\nfiles:\n  read:\n    - /new\n"),
        ("name: p\r\n", READ, "name: p\r\nfiles:\r\n  read:\r\n    - /new\r\n"),
        ("{name: p}\n", READ, "{name: p, files: {read: [/new]}}\n"),
        ("files:  # none yet\n# end\n", READ, "files:  # none yet\n  read:\n    - /new\n# end\n"),
        ("files: {}\n", READ, "files: {read: [/new]}\n"),
        ("files: {write: [/w]} # w\n", READ, "files: {write: [/w], read: [/new]} # w\n"),
        (
            "files:\n   write: [/w]\n# n\nname: p\n",
            READ,
            "files:\n   write: [/w]\n   read:\n     - /new\n# n\nname: p\n",
        ),
        ("files:\n  read:  # none\n  write: [/w]\n", READ, "files:\n  read:  # none\n    - /new\n  write: [/w]\n"),
        ("files:\n  read: []  # none\n", READ, "files:\n  read: [/new]  # none\n"),
        ("files:\n  read: [/a]  # one\n", READ, "files:\n  read: [/a, /new]  # one\n"),
        ("files:\n  read: [/a,]\n", READ, "files:\n  read: [/a, /new,]\n"),
        (
            "files:\n  read:\n  - /a # a\n\n# n\nname: p\n",
            READ,
            "files:\n  read:\n  - /a # a\n  - /new\n\n# n\nname: p\n",
        ),
        ("files:\n  read:\n      - path: /a\n        because: b\n", READ, None),
        (
            "files:\n  read:\n    - |-\n      /a\nname: p\n",
            READ,
            "files:\n  read:\n    - |-\n      /a\n    - /new\nname: p\n",
        ),
        ("files:\n  read: [/a]\n", SAID, "files:\n  read: [/a,\n         # git 2x\n         /new]\n"),
        ("files:\n  read: [/a,]\n", SAID, "files:\n  read: [/a,\n         # git 2x\n         /new]\n"),
        ("files:\n  read:\n    - /a\n", SAID, "files:\n  read:\n    - /a\n    # git 2x\n    - /new\n"),
    ],
)
def test_only_what_is_added_changes(text: str, addition: Addition, expected: str | None) -> None:
    amended = amend(text, [addition])
    assert expected in (None, amended)
    assert yaml.safe_load(amended)["files"]["read"][-1] == "/new"
    assert amend(amended, [addition]) == amended


def test_every_comment_stays_where_it_was() -> None:
    amended = amend(FLOW, [READ, SAID._replace(value="/other"), Addition("network", "allow", "b.test:443")])
    amended = amend(amended, [Addition("network", "deny", "*.c.test")])
    assert amended == FLOW.replace(
        '    "/b"    # the last\n', '    "/b",    # the last\n    /new,\n    # git 2x\n    /other,\n'
    ).replace("# the model\n", '# the model\n    - "b.test:443"\n'.replace('"', "")).replace(
        "10.0.0.0/8 ]", '10.0.0.0/8, "*.c.test" ]'
    )


@pytest.mark.parametrize(
    "text",
    [
        "files: [/a]\n",
        "files:\n  read: /a\n",
        "- files\n",
        "files: {read\n",
        "a: &x [/a]\nfiles:\n  read: *x\n",
        "files:\n  read:\n    - /a\x0b\n",
        "files:\n  read:\n    - /a\u2028    - /b\n",
        "# seen\x85files:\n  read:\n    - /a\n",
        "files:\n  read: [/a]\nfiles:\n  read: [/b]\n",
        "files: {read: [/a]}\n--- {}\n",
    ],
)
def test_what_cannot_be_added_to_is_refused(text: str) -> None:
    with pytest.raises(ProfileError) as caught:
        amend(text, [READ])
    assert caught.value.code == "profile.not-amended"


LISTS = st.sampled_from(
    ["[]", "[/a]", "[/a, '/b']", "[ /a,\n     /b,\n   ]", "[\n     /a # c\n   ]", "\n   - /a\n   # c\n   - /b", ""]
)
WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
NOTES = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=8)


@settings(max_examples=300, deadline=None)
@given(LISTS, LISTS, st.lists(st.builds(Addition, st.just("files"), st.sampled_from(["read", "write"]), WORDS, NOTES)))
def test_whatever_is_added_is_read(read: str, write: str, additions: list[Addition]) -> None:
    text = f"name: p\nfiles:\n   read: {read}\n   # between\n   write: {write}\n# end\n"
    amended = amend(text, additions)
    found = yaml.safe_load(amended)["files"]
    before = yaml.safe_load(text)["files"]
    for key in ("read", "write"):
        wanted = dict.fromkeys([*(before[key] or []), *(one.value for one in additions if one.key == key)])
        assert (found[key] or []) == [*wanted]
    assert amended.endswith("# end\n") and "   # between\n" in amended
