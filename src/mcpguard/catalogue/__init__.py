"""Which MCP servers the user's clients declare, what each really executes, and which of them the user approved."""
