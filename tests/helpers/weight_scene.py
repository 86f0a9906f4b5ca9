"""A head's weights and a worker's copy of them, with a bulk link in memory that counts, and can be cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

from transport.contracts import Received, TensorBuffer
from transport.errors import LinkClosedError
from transport.messages import AskPiece, Message, ModelRef, Piece
from vramancer_cli.engine.checkpoint import measured_files, open_checkpoint
from vramancer_cli.runtime.bulk_pace import BulkPace
from vramancer_cli.runtime.weight_copy import WeightCopy
from vramancer_cli.runtime.weight_source import WeightSource


class MemoryLink:
    """A `contracts.BulkLink` to a source in the same thread. `cut_after`: so many pieces, then it is closed."""

    def __init__(self, source: WeightSource, cut_after: int | None = None) -> None:
        self._source = source
        self._answers: deque[Received] = deque()
        self._left = cut_after
        self.asked: list[AskPiece] = []
        self.moved_bytes = 0
        self.spoil = lambda received: received

    def ask(self, request: Message) -> None:
        if isinstance(request, AskPiece):
            self.asked.append(request)
        self._source.serve("w" * 32, request, self._answered)

    def answer(self) -> Received:
        received = self.spoil(self._answers.popleft())
        if isinstance(received.message, Piece):
            if self._left == 0:
                raise LinkClosedError
            self._left = None if self._left is None else self._left - 1
        self.moved_bytes += sum(len(buffer.data) for buffer in received.tensors.values())
        return received

    def hang_up(self) -> None:
        self._left = 0

    def _answered(self, message: Message, tensors: Sequence[TensorBuffer]) -> None:
        self._answers.append(Received(0, 0, message, {tensor.spec.name: tensor for tensor in tensors}))


class WeightScene:
    """`model`: a checkpoint folder, the head's."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.model = model
        self.digest = open_checkpoint(model).digest
        self.ref = ModelRef("tiny", "folder", str(model), self.digest)
        self.head_shelf, self.shelf = folder / "head-shelf", folder / "shelf"

    def source(self) -> WeightSource:
        pace = BulkPace(lambda: False)
        return WeightSource(self.model, self.digest, measured_files(self.model), self.head_shelf, pace)

    def link(self, cut_after: int | None = None) -> MemoryLink:
        return MemoryLink(self.source(), cut_after)

    def copy(self) -> WeightCopy:
        return WeightCopy(self.shelf, self.ref)
