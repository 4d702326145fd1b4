"""The only place where the order of things is written."""
