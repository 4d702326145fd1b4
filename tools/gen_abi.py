"""Write src/mcpguard/wire/_abi.py from bpf/include/mg_abi.h, so that C and Python cannot disagree.

usage: tools/gen_abi.py [--check]
The compiler is asked, not the text: the header is compiled for BPF and the layout is read from its type information, so
padding and alignment are the real ones. `--check` writes nothing and exits 1 when the committed file differs.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build_objects

HEADER = build_objects.SOURCES / "include/mg_abi.h"
TARGET = build_objects.ROOT / "src/mcpguard/wire/_abi.py"
CODES = {(1, False): "B", (2, False): "H", (4, False): "I", (8, False): "Q", (4, True): "i", (8, True): "q"}

Type = dict[str, Any]


def main() -> int:
    """Generate, or compare with `--check`."""
    text = generate()
    if "--check" in sys.argv[1:]:
        same = TARGET.exists() and TARGET.read_text() == text
        if not same:
            print(f"{TARGET} does not match {HEADER}: run tools/gen_abi.py", file=sys.stderr)
        return 0 if same else 1
    TARGET.write_text(text)
    return 0


def generate() -> str:
    """The text of `_abi.py`. Raises BuildError when clang or bpftool is missing or refuses."""
    source = HEADER.read_text()
    structs = re.findall(r"^struct (mg_\w+) \{", source, re.MULTILINE)
    enums = re.findall(r"^enum (mg_\w+) \{", source, re.MULTILINE)
    types = _types(structs, enums)
    by_id = {t["id"]: t for t in types}
    version = re.search(r"#define MG_ABI_VERSION (\d+)", source)
    if not version:
        raise build_objects.BuildError("MG_ABI_VERSION is not in the header")
    lines = [
        '"""Layout of the BPF records, keys and values. Written by tools/gen_abi.py from bpf/include/mg_abi.h; do not edit.',
        "",
        "For each struct: the names of its fields, and its struct.Struct with nested structs and byte arrays as bytes.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "import struct",
        "",
        "TYPE_CHECKING = False",
        "if TYPE_CHECKING:",
        "    from typing import Final",
        "",
        f"ABI_VERSION: Final = {version[1]}",
    ]
    for name in enums:
        found = next(t for t in types if t["kind"] == "ENUM" and t["name"] == name)
        lines += ["", *(f"{v['name']}: Final = {v['val']}" for v in found["values"])]
    for name in structs:
        found = next(t for t in types if t["kind"] == "STRUCT" and t["name"] == name)
        lines += ["", *_struct(found, by_id)]
    return "\n".join(lines) + "\n"


def _types(structs: list[str], enums: list[str]) -> list[Type]:
    clang = build_objects.find_clang()
    bpftool = shutil.which("bpftool") or shutil.which("/usr/sbin/bpftool")
    if not clang or not bpftool:
        raise build_objects.BuildError("gen_abi.py needs clang and bpftool (Debian: apt-get install clang bpftool)")
    with tempfile.TemporaryDirectory() as folder:
        anchor, out = Path(folder, "anchor.c"), Path(folder, "anchor.o")
        uses = [f"struct {n} s_{n};" for n in structs] + [f"enum {n} e_{n};" for n in enums]
        anchor.write_text('#include "mg_abi.h"\n' + "\n".join(uses) + "\n")
        build_objects._run([clang, *build_objects._flags(), "-c", str(anchor), "-o", str(out)])
        shown = subprocess.run([bpftool, "btf", "dump", "-j", "file", str(out)], capture_output=True, check=True)
    types: list[Type] = json.loads(shown.stdout)["types"]
    return types


def _struct(found: Type, by_id: dict[int, Type]) -> list[str]:
    codes, names, at = [], [], 0
    for member in found["members"]:
        offset = member["bits_offset"] // 8
        code, size = _code(member["type_id"], by_id)
        if offset != at:
            raise build_objects.BuildError(f"hidden padding in {found['name']} before {member['name']}")
        codes.append(code)
        names.append(member["name"])
        at = offset + size
    if at != found["size"]:
        raise build_objects.BuildError(f"hidden padding at the end of {found['name']}")
    comment = textwrap.wrap(" ".join(names), 110, initial_indent="# ", subsequent_indent="# ")
    return [*comment, f'{found["name"].upper()}: Final = struct.Struct("={"".join(codes)}")']


def _code(type_id: int, by_id: dict[int, Type]) -> tuple[str, int]:
    """Format letter and size of a member: a number, or bytes for arrays and nested structs."""
    found = by_id[type_id]
    while found["kind"] in ("TYPEDEF", "CONST", "VOLATILE"):
        found = by_id[found["type_id"]]
    if found["kind"] == "INT":
        return CODES[found["size"], found["encoding"] == "SIGNED"], found["size"]
    if found["kind"] == "STRUCT":
        return f"{found['size']}s", found["size"]
    if found["kind"] == "ARRAY":
        size = found["nr_elems"] * _code(found["type_id"], by_id)[1] if by_id[found["type_id"]]["kind"] != "INT" else 0
        size = size or found["nr_elems"] * by_id[found["type_id"]]["size"]
        return f"{size}s", size
    raise build_objects.BuildError(f"{found['kind']} has no place in the contract")


if __name__ == "__main__":
    sys.exit(main())
