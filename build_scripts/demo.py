"""`make demo`: three real nodes on this machine hold the built-in model together and answer one question.

Each node's --memory is too small for the whole model. The answer counts only if every node computed its layers for
every token of it, by the nodes' own counts.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from build_scripts.local_cluster import LocalCluster, local_cluster
from commands.board import Board
from vramancer_cli.cluster.status import ClusterStatus
from vramancer_cli.errors import SHOWN
from vramancer_cli.serving.client import ChatDelta

QUESTION = "How do I add a second machine?"
MEMORY = "16MiB"


def main() -> int:
    arguments = _arguments()
    console = Console(highlight=False)
    try:
        with tempfile.TemporaryDirectory(prefix="vramancer-demo-") as folder:
            return _run(console, Path(folder), arguments)
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 0
    except (*SHOWN, TimeoutError) as error:
        console.print(f"[red]error:[/red] {error} {getattr(error, 'hint', '')}", markup=True)
        return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop after the answer")
    parser.add_argument("--nodes", type=int, default=3, help="how many nodes (1: no memory limit)")
    parser.add_argument("--port", type=int, default=5000, help="the API's port")
    parser.add_argument("--question", default=QUESTION)
    return parser.parse_args()


def _run(console: Console, folder: Path, arguments: argparse.Namespace) -> int:
    nodes: int = arguments.nodes
    threads = max(1, (os.cpu_count() or 1) // nodes)
    with local_cluster(folder, MEMORY if nodes > 1 else "", threads) as cluster:
        status = _start(console, cluster, nodes, arguments.port)
        console.print(Board(status))
        passed = _ask(console, cluster, arguments.question)
        if not arguments.once:
            _stay(console, cluster)
    return 0 if passed else 1


def _start(console: Console, cluster: LocalCluster, nodes: int, port: int) -> ClusterStatus:
    started = time.monotonic()
    limit = f", each with --memory {MEMORY}" if nodes > 1 else ""
    console.print(f"Starting {nodes} node{'s' * (nodes > 1)} on this machine{limit} …")
    cluster.start_head("--draft", "off", port=port)  # what is guessed is computed too, and would be counted
    for _ in range(nodes - 1):
        cluster.add_worker(discover=True)
    status = cluster.wait_ready(nodes)
    console.print(f"Ready after {time.monotonic() - started:.1f} s.\n")
    return status


def _ask(console: Console, cluster: LocalCluster, question: str) -> bool:
    """Ask through the API and stream the answer; whether every node did its share of it."""
    before = _counts(cluster)
    console.print(f"\n[bold]> {question}[/bold]")
    started = time.monotonic()
    counted, finish_reason = ChatDelta(), ""
    for delta in cluster.client.chat([{"role": "user", "content": question}], temperature=0.0):
        console.print(delta.text, end="", soft_wrap=True, markup=False)
        counted = delta if delta.completion_tokens is not None else counted
        finish_reason = delta.finish_reason or finish_reason
    elapsed_s = time.monotonic() - started
    console.print("\n")
    if counted.prompt_tokens is None or counted.completion_tokens is None:
        console.print("[red]The answer came without its counts.[/red]")
        return False
    rate = counted.completion_tokens / elapsed_s
    console.print(f"{counted.completion_tokens} tokens in {elapsed_s:.2f} s: {rate:.1f} tokens/s")
    # The last token is sampled and never computed through the layers: the stop token, or the one at the limit.
    computed = counted.prompt_tokens + counted.completion_tokens - (finish_reason == "length")
    return _proven(console, cluster, before, computed)


def _proven(console: Console, cluster: LocalCluster, before: dict[str, int], tokens: int) -> bool:
    """Each node's own count of (layer, token) pairs: all of them together make up the answer."""
    status = cluster.client.status(fresh=True)
    done = {node.name: node.layer_tokens - before[node.name] for node in status.nodes}
    wanted = status.layer_count * tokens
    for node in status.nodes:
        console.print(f"  {node.name}: {done[node.name]} (layer, token) pairs")
    passed = sum(done.values()) == wanted and all(done.values())
    sign = "[green]=[/green]" if passed else "[red]is not[/red]"
    console.print(f"  together {sum(done.values())} {sign} {status.layer_count} layers x {tokens} tokens")
    return passed


def _counts(cluster: LocalCluster) -> dict[str, int]:
    return {node.name: node.layer_tokens for node in cluster.client.status(fresh=True).nodes}


def _stay(console: Console, cluster: LocalCluster) -> None:
    port = cluster.head.api_url.rsplit(":", 1)[1]
    console.print(f"\nOpen [bold]http://localhost:{port}[/bold] and ask more. Ctrl-C stops all nodes.")
    while all(node.process.poll() is None for node in cluster.nodes):
        time.sleep(0.5)
    console.print("[red]A node ended.[/red]")


if __name__ == "__main__":
    sys.exit(main())
