"""The HTTP server and its client: the only room with aiohttp."""
