"""schemathesis against the running server: requests after its own description, right ones and wrong ones."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from fuzz.server import Server

ROOT: Final = Path(__file__).parents[1]
CHECKS: Final = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "unsupported_method",
)  # fmt: skip
ROUND_DEADLINE_S: Final = 900.0


@dataclass(frozen=True, slots=True)
class Round:
    """One run of schemathesis. `output` is what it printed; `command` repeats it against a server at URL."""

    statuses: Counter[str]
    failed: bool
    output: str
    command: str


def is_here() -> bool:
    return importlib.util.find_spec("schemathesis") is not None


def run_round(server: Server, seed: int, examples: int, phases: str = "examples,coverage,fuzzing") -> Round:
    """`examples`: most requests for each route and phase. Raises TimeoutExpired where it does not end."""
    arguments = [
        "run", f"{server.url.rstrip('/')}/openapi.json", "--mode", "all", "--seed", str(seed),
        "--max-examples", str(examples),
        "--checks", ",".join(CHECKS), "--phases", phases, "--continue-on-failure", "--no-color",
        "--request-timeout", "30", "--generation-database", "none", "--suppress-health-check", "all",
    ]  # fmt: skip
    with TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.json"
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "fuzz.api_hooks", "PYTHONPATH": str(ROOT)}
        environment |= {"FUZZ_MODEL": server.model, "FUZZ_COUNTS": str(counts)}
        ran = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", *arguments],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=ROUND_DEADLINE_S, check=False,
        )  # fmt: skip
        statuses = Counter[str](json.loads(counts.read_text())) if counts.exists() else Counter[str]()
    command = f"python -m fuzz requests --seed {seed} --only api"
    return Round(statuses, ran.returncode != 0 or not statuses, ran.stdout + ran.stderr, command)
