"""Rooms, one enforcement or observation mechanism each; they never import one another."""
