"""What stands between an agent and its MCP servers, outside of the guarded tree; `shim` alone runs inside."""
