"""Nouns: standard library only, no I/O."""
