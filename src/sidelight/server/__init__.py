"""A service that grounds videos of given folders: REST, a web page, and tools for language models (MCP)."""
