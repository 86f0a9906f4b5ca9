"""The only torch room: weights, shards, KV cache, attention, ends.

Never imports asyncio, sockets, scheduling, planning, cluster.
"""
