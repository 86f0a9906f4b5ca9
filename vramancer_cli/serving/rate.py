"""How often one may ask: a token bucket for each key or address. Pure: `now` in, seconds to wait out."""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import Final

MOST_TRACKED: Final = 4096
_HOME_PREFIX_BITS: Final = 64


class Buckets:
    """`per_minute` at once, and refilled evenly; the `most` that asked last are remembered, others start full."""

    def __init__(self, per_minute: int, most: int = MOST_TRACKED) -> None:
        self._size = float(per_minute)
        self._refill_per_s = per_minute / 60
        self._most = most
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, who: str, now: float) -> float:
        """0.0 and one is taken; or, with nothing taken, after how many seconds there will be one."""
        left = self._left_at(who, now)
        wait_s = self._wait_s(left)
        self._left[who] = (left if wait_s else left - 1, now)
        self._left.move_to_end(who)
        if len(self._left) > self._most:
            self._left.popitem(last=False)
        return wait_s

    def wait_s(self, who: str, now: float) -> float:
        """As `take`, without taking."""
        return self._wait_s(self._left_at(who, now))

    def __len__(self) -> int:
        return len(self._left)

    def _left_at(self, who: str, now: float) -> float:
        left, since = self._left.get(who, (self._size, now))
        return min(self._size, left + max(0.0, now - since) * self._refill_per_s)

    def _wait_s(self, left: float) -> float:
        return 0.0 if left >= 1 else (1 - left) / self._refill_per_s


def home_of(address: str) -> str:
    """What is counted as one address: all of an IPv6 /64 belongs to one home, which can use any of it."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(IPv6Address(int(ip) >> _HOME_PREFIX_BITS << _HOME_PREFIX_BITS))
    return str(ip)
