"""Build hook: put the BPF objects and the libraries that load them into the wheel, and name the wheel by what it needs.

All work is in `tools/build_objects.py`; this file only tells hatchling about the result.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).resolve().parent / "tools"))

import build_objects


class NativeParts(BuildHookInterface[Any]):
    """Builds before every wheel, editable install and source distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the objects; a wheel also carries the libraries and is bound to one architecture."""
        try:
            build_objects.build_objects()
            if self.target_name == "wheel":
                libraries = build_objects.copy_libraries()
                build_data["pure_python"] = False
                build_data["tag"] = f"py3-none-{build_objects.platform_tag(libraries)}"
                if version == "standard":  # an editable install reads the profiles where they are
                    build_data["force_include"]["profiles"] = "mcpguard/data/profiles"
        except build_objects.BuildError as error:
            raise SystemExit(f"\nmcpguard cannot be built: {error}\n") from None
