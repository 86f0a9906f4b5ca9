"""The only torch room: weights, shards, KV cache, attention, ends.

Never imports asyncio, sockets, scheduling, planning, cluster.
"""

import os
from typing import Final

WAIT_POLICY: Final = "OMP_WAIT_POLICY"
"""Read once, when torch loads its OpenMP: whether a CPU thread that waits for the others sleeps or spins."""

# People use their machines while we do, and may start two nodes on one: where cores are busy, threads that spin for
# each other make a decode step many times as long (bench/threads.py). Whoever set the variable is obeyed.
os.environ.setdefault(WAIT_POLICY, "PASSIVE")
