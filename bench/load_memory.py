"""`make bench-load`: the most memory that loading a shard takes, beside the shard itself. Linux.

    python -m bench.load_memory

Random models of some 300 MB are made on the spot; each is loaded by a process of its own, which looks at its own peak
(VmHWM, set back just before). Writes results/load_memory.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM

RESULTS: Final = Path(__file__).parent / "results"
GOAL: Final = 1.15
LLAMA: Final[dict[str, Any]] = {
    "vocab_size": 8000, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 9,
    "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 512,
}  # fmt: skip
EXPERTS: Final[dict[str, Any]] = {**LLAMA, "intermediate_size": 1024, "num_local_experts": 8, "num_hidden_layers": 5}
CASES: Final[dict[str, tuple[str, dict[str, Any], torch.dtype, str, str]]] = {
    "as it is stored": ("llama", LLAMA, torch.bfloat16, "1GB", "bfloat16"),
    "in several files": ("llama", LLAMA, torch.bfloat16, "60MB", "bfloat16"),
    "converted from float32": ("llama", LLAMA, torch.float32, "200MB", "bfloat16"),
    "experts fused on load": ("mixtral", EXPERTS, torch.bfloat16, "1GB", "bfloat16"),
}
"""Family, config, stored dtype, largest file, dtype of the plan."""

CHILD: Final = """
import json, sys
from pathlib import Path
import torch
from transport.types import LayerRange
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.heap import giving_back
from vramancer_cli.engine.shard import Shard
from vramancer_cli.engine.tensors import DTYPES

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

torch.zeros(1 << 20).to(torch.bfloat16).sum()  # what torch sets up at its first work is not the shard's
shard = Shard(open_checkpoint(Path(sys.argv[1])), LayerRange(0, int(sys.argv[2])), DTYPES[sys.argv[3]])
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
with giving_back():
    shard.load(torch.device("cpu"), lambda loaded, total: None)
print(json.dumps({"shard_bytes": shard.weights_bytes, "peak_bytes": memory("VmHWM") - before}))
"""


def measure(name: str, folder: Path) -> dict[str, Any]:
    family, config, stored, largest, dtype = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config), dtype=stored)
    model.save_pretrained(folder, max_shard_size=largest)
    del model
    layers = str(config["num_hidden_layers"])
    run = [sys.executable, "-c", CHILD, str(folder), layers, dtype]
    found = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    return {**found, "ratio": found["peak_bytes"] / found["shard_bytes"]}


def main() -> None:
    figures: dict[str, dict[str, Any]] = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = measure(name, Path(folder))
        shard_mib, ratio = figures[name]["shard_bytes"] / (1 << 20), figures[name]["ratio"]
        print(f"{name}: {ratio:.3f} x the shard of {shard_mib:.0f} MiB ({'reached' if ratio <= GOAL else 'missed'})")
    (RESULTS / "load_memory.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
