"""MCP as bytes and as rules: lines, messages, pairs, and what may pass. Pure: no files, no sockets."""
