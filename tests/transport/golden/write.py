"""Write the golden file of every sample that has none yet: `python -m tests.transport.golden.write`, from the root.

A file that exists is what a released program sends: it is never written again. A message that must change its bytes
needs a new protocol version, and with it a new folder.
"""

from __future__ import annotations

from tests.helpers.wire_samples import GOLDEN, SAMPLES
from transport.messages import PROTOCOL_MAJOR, PROTOCOL_MINOR


def main() -> None:
    folder = GOLDEN / f"v{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"
    folder.mkdir(exist_ok=True)
    for sample in SAMPLES:
        path = folder / f"{type(sample.message).__name__}.bin"
        if path.exists():
            print(f"kept   {path.name}")
            continue
        with path.open("xb") as file:
            file.write(sample.frame())
        print(f"wrote  {path.name}")


if __name__ == "__main__":
    main()
