"""Network namespaces with one wire to this machine, and what can be done to that wire. Needs root and iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

NOWHERE = "02:00:00:00:00:99"
"""A hardware address that nobody has."""
NEEDS = "needs Linux with network namespaces, as root"


def can_make_them() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("ip") is not None


@dataclass(frozen=True)
class Wire:
    """`near`: this machine's address on it; `far`: the namespace's only one beside loopback."""

    namespace: str
    device: str
    near: str
    far: str

    @property
    def inside(self) -> tuple[str, ...]:
        """Before a command that is to run in the namespace."""
        return ("ip", "netns", "exec", self.namespace)

    def poison(self) -> None:
        """What this machine sends goes to nobody, and nobody says so; what comes from there still arrives."""
        _ip("neigh", "replace", self.far, "lladdr", NOWHERE, "dev", self.device, "nud", "permanent")

    def cure(self) -> None:
        _ip("neigh", "del", self.far, "dev", self.device)

    def pull(self) -> None:
        _ip("link", "set", self.device, "down")


@contextmanager
def wire(number: int, *, ipv6: bool = False, multicast: bool = True) -> Iterator[Wire]:
    """A namespace that reaches nothing but this machine, over IPv4 only or IPv6 only."""
    name, device = f"vrm-{os.getpid()}-{number}", f"vrm{os.getpid() % 100_000}n{number}"
    near, far = (f"fd77:{number}::1", f"fd77:{number}::2") if ipv6 else (f"10.77.{number}.1", f"10.77.{number}.2")
    length, whole = ("/64", ("nodad",)) if ipv6 else ("/24", ("brd", "+"))
    _ip("netns", "add", name)
    try:
        _ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("addr", "add", near + length, *whole, "dev", device)
        _ip("-n", name, "addr", "add", far + length, *whole, "dev", "eth0")
        for prefix, link in (((), device), (("-n", name), "eth0"), (("-n", name), "lo")):
            _ip(*prefix, "link", "set", link, "up", "multicast", "on" if multicast else "off")
        yield Wire(name, device, near, far)
    finally:
        _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)
