"""Thin skins over system calls: no policy, no decisions."""
