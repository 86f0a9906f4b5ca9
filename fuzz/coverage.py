"""The frame parser under atheris, which keeps the inputs that reach new code. Not a dependency: used where it is.

python -m fuzz frames --coverage --frames N     starts this file as a process of its own, since libFuzzer never returns
"""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

MOST_BYTES: Final = 8192
SEEDS: Final = 300
MISSING: Final = "atheris is not installed, so there was no coverage-guided run: pip install atheris (Linux and macOS)"


def run(count: int, seed: int, crashes: Path) -> bool:
    """Whether it ran and found nothing; says so where it cannot run."""
    if importlib.util.find_spec("atheris") is None:
        print(MISSING)
        return True
    from fuzz.frames import make_case

    crashes.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        for number in range(SEEDS):
            (Path(folder) / f"{number}.bin").write_bytes(make_case(seed, number).to_bytes())
        arguments = [
            f"-runs={count}",
            f"-seed={seed % 2**31 or 1}",
            f"-max_len={MOST_BYTES}",
            "-timeout=10",
            "-rss_limit_mb=2048",
        ]
        prefix = f"-artifact_prefix={crashes}/frames-"
        ran = subprocess.run([sys.executable, "-m", "fuzz.coverage", *arguments, prefix, folder], check=False)
    if ran.returncode:
        print(f"atheris found something; run it again with: python -m fuzz frames --replay {crashes}/frames-crash-…")
    return ran.returncode == 0


def main() -> None:
    import atheris  # pyright: ignore[reportMissingImports]  # only where it is installed

    guided: Any = atheris
    with guided.instrument_imports(include=["transport"]):
        from fuzz import frames
    from fuzz.mutation import spoil

    def mutate(data: bytes, most_bytes: int, seed: int) -> bytes:
        """Half of the time whole new frames behind the old ones: blind changes seldom get past the checksums."""
        rng = random.Random(seed)
        if rng.random() < 0.4:
            return bytes(guided.Mutate(data, most_bytes))
        fresh = frames.make_case(seed, rng.getrandbits(30))
        role, stream = data[:1] or b"\0", data[1:]
        mixed = (
            spoil(stream, rng) if rng.random() < 0.3 else stream + fresh.stream[rng.randrange(len(fresh.stream) or 1) :]
        )
        return (rng.choice((role + mixed, role + fresh.stream)))[:most_bytes]

    def one(data: bytes) -> None:
        frames.check(frames.Case.from_bytes(data), random.Random(len(data)))

    guided.Setup(sys.argv, one, custom_mutator=mutate)
    guided.Fuzz()


if __name__ == "__main__":
    main()
