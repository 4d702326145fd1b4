"""`python -m mcpguard`: the same as the command `mcpguard`."""

from __future__ import annotations

import sys

from mcpguard.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
