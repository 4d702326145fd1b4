"""mcpguard: run an AI agent inside an eBPF sandbox profile keyed to its process tree."""

__version__ = "0.1.0"
