"""YAML text to Profile: parse, find, merge, store."""
