"""What every route may reach, under typed keys of the aiohttp application. No routes here."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from aiohttp import web

from vramancer_cli.runtime.contracts import Admin, Deployment, Registry
from vramancer_cli.serving.gate import Gate
from vramancer_cli.serving.idempotency import Idempotency
from vramancer_cli.serving.settings import ServerSettings
from vramancer_cli.serving.text import TextTools


class Tokenizers:
    """The tokenizers of the models being served, each loaded once, off the event loop; the newest few are kept."""

    KEPT: Final = 4

    def __init__(self) -> None:
        self._loaded: dict[Path, TextTools] = {}
        self._loading = asyncio.Lock()

    async def of(self, deployment: Deployment) -> TextTools:
        """Raises ModelError."""
        async with self._loading:
            if deployment.folder not in self._loaded:
                self._loaded[deployment.folder] = await asyncio.to_thread(TextTools.load, deployment.folder)
                for folder in list(self._loaded)[: -self.KEPT]:
                    del self._loaded[folder]
            return self._loaded[deployment.folder]


REGISTRY: Final = web.AppKey("registry", Registry)
ADMIN: Final = web.AppKey("admin", Admin)
SETTINGS: Final = web.AppKey("settings", ServerSettings)
GATE: Final = web.AppKey("gate", Gate)
ROLE: Final = web.RequestKey("role", str)
"""Of a request: the role of who asks, as the gate found it."""
CALLER: Final = web.RequestKey("caller", str)
"""Of a request: which key it was asked with, "" where none was needed."""
IDEMPOTENCY: Final = web.AppKey("idempotency", Idempotency)
TOKENIZERS: Final = web.AppKey("tokenizers", Tokenizers)
