"""Loaded by schemathesis: keeps answers short, asks for the model that is there, and counts replies by status.

`FUZZ_MODEL` and `FUZZ_COUNTS` (a file that gets one JSON object at the end) come from `fuzz.api`.
"""

from __future__ import annotations

import atexit
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Final

import schemathesis

MOST_TOKENS: Final = 3
LIMITS: Final = ("max_tokens", "max_completion_tokens")
CAPPED: Final = (*LIMITS, "min_tokens")
COUNTS: Final = Counter[str]()


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    body = case.body
    if not isinstance(body, dict) or not case.path.startswith("/v1/"):
        return
    for name in CAPPED:
        asked = body.get(name)
        if isinstance(asked, int) and not isinstance(asked, bool) and 1 <= asked < 2**31:
            body[name] = min(asked, MOST_TOKENS)
    if all(body.get(name) is None for name in LIMITS):
        body["max_tokens"] = MOST_TOKENS
    if isinstance(body.get("model"), str) and len(body["model"]) % 5:
        body["model"] = os.environ["FUZZ_MODEL"]


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    COUNTS[str(response.status_code)] += 1


@atexit.register
def write() -> None:
    if "FUZZ_COUNTS" in os.environ:
        Path(os.environ["FUZZ_COUNTS"]).write_text(json.dumps(COUNTS), encoding="utf-8")
