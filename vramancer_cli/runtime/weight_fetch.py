"""A worker's end of a transfer of weights: asks for what it lacks, checks each piece, and keeps it.

Blocking, for one thread, over one bulk link; what has come stays when the link is cut. Never torch, never asyncio.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from transport.contracts import BulkLink
from transport.errors import RemoteProtocolError
from transport.messages import PIECE_BYTES, AskModel, AskPiece, ModelFiles, ModelRef, NotServed, Piece
from vramancer_cli.errors import ModelError
from vramancer_cli.models.folder import SMALL_MAX_BYTES, one_line
from vramancer_cli.models.weight_files import ByteRange
from vramancer_cli.runtime.piece_records import PieceKey
from vramancer_cli.runtime.weight_copy import CONFIG, WeightCopy

WINDOW: Final = 8
"""Questions on their way at once, so that the other end never waits for the next one."""
HEADS_MAX_BYTES: Final = 512 << 20
"""All headers together."""
FILE_MAX_BYTES: Final = 1 << 44

Arrived = Callable[[int, int], None]
"""(bytes that are there and right, bytes that came over the link), called on the fetching thread."""


def fetch_heads(link: BulkLink, copy: WeightCopy, ref: ModelRef) -> None:
    """Bring config.json and the headers of all weight files: enough to know which bytes a stage needs.

    They are a stranger's until the engine has checked them. Raises ModelError, TransportError, OSError, DiskFullError.
    """
    link.ask(AskModel(ref.digest))
    files = link.answer().message
    if isinstance(files, NotServed):
        raise _not_served(files)
    if not isinstance(files, ModelFiles):
        raise RemoteProtocolError(f"The head answered AskModel with {type(files).__name__}.")
    _refuse_absurd(files)
    copy.lay_out(files)
    heads = [(CONFIG, 0, files.config_bytes)]
    heads += [(number, 0, file.head_bytes) for number, file in enumerate(files.files, start=1)]
    keys = [key for head in heads for key in _cut(*head)]
    copy.check_room(_missing_bytes(copy, keys))
    _fetch(link, copy, keys, lambda _there, _moved: None)


def fetch_ranges(link: BulkLink, copy: WeightCopy, ranges: Sequence[ByteRange], arrived: Arrived) -> None:
    """Bring every byte of `ranges` (of the copy's own files) that is not there yet, or not right any more.

    Raises as `fetch_heads`.
    """
    keys = [key for part in ranges for key in _cut(copy.number_of(part.path), part.start, part.size_bytes)]
    copy.check_room(_missing_bytes(copy, keys))
    _fetch(link, copy, keys, arrived)


def _refuse_absurd(files: ModelFiles) -> None:
    heads_bytes = sum(file.head_bytes for file in files.files)
    sound = all(file.head_bytes <= file.size_bytes <= FILE_MAX_BYTES for file in files.files)
    if not (files.files and sound and files.config_bytes <= SMALL_MAX_BYTES and heads_bytes <= HEADS_MAX_BYTES):
        raise ModelError("The head's model has files of impossible sizes.")


def _missing_bytes(copy: WeightCopy, keys: Iterable[PieceKey]) -> int:
    return sum(key.size_bytes for key in keys if not copy.has(key))


def _cut(file: int, start: int, size_bytes: int) -> Iterator[PieceKey]:
    """A tensor's pieces: always the same, whoever owns what beside it."""
    end = start + size_bytes
    for at in range(start, end, PIECE_BYTES):
        yield PieceKey(file, at, min(PIECE_BYTES, end - at))


def _fetch(link: BulkLink, copy: WeightCopy, keys: Sequence[PieceKey], arrived: Arrived) -> None:
    asked: deque[tuple[PieceKey, bytes]] = deque()
    there = moved = 0
    waiting = iter(keys)
    try:
        while True:
            for key in waiting:
                asked.append((key, _ask(link, copy, key)))
                if len(asked) >= WINDOW:
                    break
            if not asked:
                return
            key, known = asked.popleft()
            moved += _take(link, copy, key, known)
            there += key.size_bytes
            arrived(there, moved)
    finally:
        copy.keep()


def _ask(link: BulkLink, copy: WeightCopy, key: PieceKey) -> bytes:
    """Gives the SHA-256 of what is here already: then the answer need not bring it again."""
    known = copy.sha256_of(key)
    link.ask(AskPiece(key.file, key.start, key.size_bytes, known))
    return known


def _take(link: BulkLink, copy: WeightCopy, key: PieceKey, known: bytes) -> int:
    """The next answer, which is for `key`. Gives the bytes that it brought."""
    received = link.answer()
    piece = received.message
    if isinstance(piece, NotServed):
        raise _not_served(piece)
    if not isinstance(piece, Piece):
        raise RemoteProtocolError(f"The head answered AskPiece with {type(piece).__name__}.")
    if known and piece.sha256 == known:
        return 0
    data = [buffer.data for buffer in received.tensors.values()]
    if len(data) != 1 or len(data[0]) != key.size_bytes or hashlib.sha256(data[0]).digest() != piece.sha256:
        raise RemoteProtocolError("A piece of the weights arrived that is not what the head said it is.")
    copy.put(key, data[0], piece.sha256)
    return key.size_bytes


def _not_served(answer: NotServed) -> ModelError:
    return ModelError(f"The head does not hand out its weights: {one_line(answer.reason)}.")
