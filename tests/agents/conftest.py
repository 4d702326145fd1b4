"""Lets the agent tests use the kernel tests' harness."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "kernel"))
