"""Everything with a pulse, on asyncio: coordinator, worker, pipeline, generation. Never aiohttp, typer, rich, torch."""
