"""A digest function that does not bring OpenSSL along, whose loading takes longer than that of ten modules of ours."""

from __future__ import annotations

try:
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

__all__ = ["blake2b"]
