"""What a child process of the doctor does. Small: a child imports this before it can answer. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from multiprocessing.connection import Connection
from typing import Any, Final

from vramancer_cli import __version__

ANSWER_LIMIT_BYTES: Final = 4096


def facts(question: bytes) -> dict[str, Any]:
    """Who computes here, and something that only the right question gives."""
    digest = hashlib.sha256(question).hexdigest()
    return {"pid": os.getpid(), "version": __version__, "frozen": hasattr(sys, "frozen"), "digest": digest}


def answer(connection: Connection[Any, Any], question: bytes) -> None:
    """The whole life of the child: `facts` as JSON, once."""
    connection.send_bytes(json.dumps(facts(question)).encode())
    connection.close()
