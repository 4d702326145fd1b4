"""Root's own folders of what lasts until the next boot. Apart, so that who needs a name imports no more than it."""

from __future__ import annotations

RUN = "/run/mcpguard"
# Tiers that this kernel refused, as the broker remembers them; everybody may read it, as a hint.
REFUSED_TIERS = f"{RUN}/tiers.json"
# Where the engine's maps, programs and links are.
FILE_SYSTEM = "/sys/fs/bpf"
PINS = f"{FILE_SYSTEM}/mcpguard"
