"""Each cell measured in pairs: ours and theirs in turn, so that what disturbs the machine disturbs both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from bench.table import peer_llama
from bench.table.cells import Bits, Cell, Setting, Work
from bench.table.ours import Place, running
from bench.table.peer_llama import LlamaCpp
from bench.table.preparing import Bench
from bench.table.streams import NotMeasuredError

CORES: Final[Mapping[Setting, tuple[tuple[int, ...], ...]]] = {"one process": ((),), "two hosts": ((0,), (1,))}
"""Where a setting's nodes run; () is all cores."""
TRIAL_TOKENS: Final = 8


class Measurable(Protocol):
    """Whoever can be asked for both."""

    def prefill(self, tokens: int) -> float: ...
    def decode(self, prompt_tokens: int, tokens: int, streams: int = 1) -> float: ...


def rate(who: Measurable, work: Work) -> float:
    """Tokens a second."""
    return who.decode(*work) if work.tokens else who.prefill(work.prompt_tokens)


@dataclass(frozen=True, slots=True)
class Pairs:
    """A cell's figures in tokens a second. `arrangement`: how the peer ran, where it can in several ways."""

    cell: Cell
    bits: Bits
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    arrangement: str


def measure(bench: Bench, cells: Sequence[Cell], bits: Bits, say: Callable[[str], None]) -> Iterator[Pairs]:
    """`cells` are all of one setting. One of which nothing could be measured is left out, and said."""
    setting = cells[0].setting
    say(f"{bits} bit, {setting}: starting")
    with ExitStack() as stack:
        ours = stack.enter_context(_ours(bench, bits, setting))
        alone = stack.enter_context(_alone(bench, bits)) if _is_compared_alone(cells) else {}
        llama = stack.enter_context(_llama(bench, bits, setting))
        for cell in cells:
            try:
                found = _pairs(cell, bits, ours, llama if cell.peer == "llama.cpp" else alone)
            except NotMeasuredError as error:
                say(f"{bits} bit, {cell.letter}: not measured: {error}")
                continue
            say(f"{bits} bit, {cell.letter}: {_figures(found.ours)} / {_figures(found.theirs)}  ({found.arrangement})")
            yield found


def _pairs(cell: Cell, bits: Bits, ours: Measurable, peers: Mapping[str, Measurable]) -> Pairs:
    """Raises NotMeasuredError where one of the pairs failed twice."""
    name, peer = best(peers, cell.work)
    pairs = [_pair(ours, peer, cell.work) for _ in range(cell.repetitions)]
    mine, others = zip(*pairs, strict=True)
    return Pairs(cell, bits, mine, others, name)


def _pair(ours: Measurable, peer: Measurable, work: Work) -> tuple[float, float]:
    """A second time where the first one went wrong: a stream may come late on a busy machine."""
    try:
        return rate(ours, work), rate(peer, work)
    except NotMeasuredError:
        return rate(ours, work), rate(peer, work)


def best(peers: Mapping[str, Measurable], work: Work) -> tuple[str, Measurable]:
    """Where there are several arrangements, the one that is fastest in a short trial."""
    trial = work._replace(tokens=min(work.tokens, TRIAL_TOKENS))
    tried = {name: rate(peer, trial) if len(peers) > 1 else 0.0 for name, peer in peers.items()}
    name = max(tried, key=tried.__getitem__)
    return name, peers[name]


def _figures(values: Iterable[float]) -> str:
    return " ".join(f"{value:.1f}" for value in values)


def _is_compared_alone(cells: Sequence[Cell]) -> bool:
    return any(cell.peer != "llama.cpp" for cell in cells)


@contextmanager
def _ours(bench: Bench, bits: Bits, setting: Setting) -> Iterator[Measurable]:
    places = [Place(cores) for cores in CORES[setting]]
    threads = 1 if places[0].cores else 2
    with running(bench.folder, bench.serving(bits), places, threads) as ours:
        yield ours


@contextmanager
def _alone(bench: Bench, bits: Bits) -> Iterator[dict[str, Measurable]]:
    place = Place(CORES["two hosts"][0])
    with running(bench.folder, bench.serving(bits), [place]) as ours:
        yield {"one node of one thread": ours}


@contextmanager
def _llama(bench: Bench, bits: Bits, setting: Setting) -> Iterator[dict[str, Measurable]]:
    """Over RPC it can run in two ways on two hosts: both give their core to a server, or the program computes a half
    itself. Neither is faster always."""
    programs, model = bench.programs, bench.ggufs[bits]
    if setting == "one process":
        yield {"one process": LlamaCpp(programs, model, threads=2)}
        return
    cores, layers = CORES[setting], bench.shape.layers
    with peer_llama.rpc_servers(programs, [Place(place) for place in cores]) as servers:
        split = ",".join("1" for _ in servers)
        yield {
            "two RPC servers": LlamaCpp(programs, model, 1, cores[0], tuple(servers), layers + 1, split),
            "itself and an RPC server": LlamaCpp(programs, model, 1, cores[0], tuple(servers[1:]), layers // 2 + 1),
        }
