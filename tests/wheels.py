"""A package to install without a network."""

from __future__ import annotations

import zipfile
from pathlib import Path


def put_wheel(project: Path) -> None:
    """Put the smallest package that pip takes there: `small`, one empty module."""
    name = "small-1.0.dist-info"
    files = {
        "small.py": "",
        f"{name}/METADATA": "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n",
        f"{name}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{name}/RECORD": f"small.py,,\n{name}/METADATA,,\n{name}/WHEEL,,\n{name}/RECORD,,\n",
    }
    with zipfile.ZipFile(project / "small-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
