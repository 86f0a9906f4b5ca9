"""The head's end of a transfer of weights: which files there are, and pieces of them, each with its SHA-256.

Serves the one model that the head serves, and nothing outside its weight files and config.json. Never torch.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from transport.contracts import Answer, TensorBuffer
from transport.errors import RemoteProtocolError
from transport.messages import AskModel, AskPiece, Message, ModelFiles, NotServed, Piece, WeightFileSize
from transport.types import NodeId, TensorSpec
from vramancer_cli.models.weight_files import WeightFile
from vramancer_cli.runtime import kept_weights
from vramancer_cli.runtime.bulk_pace import BulkPace
from vramancer_cli.runtime.piece_records import PieceKey, PieceRecords
from vramancer_cli.telemetry import log

BYTES: Final = "bytes"
"""The name of a piece's tensor."""
_KEPT_TOGETHER: Final = 64


class ChangedFileError(Exception):
    """A file is not what it was when the model was chosen."""


class WeightSource:
    """A BulkSource. `files` are of the checkpoint `folder` with this `digest`; hashes are remembered under `shelf`."""

    def __init__(
        self, folder: Path, digest: str, files: Sequence[WeightFile], shelf: Path | None, pace: BulkPace
    ) -> None:
        paths = [folder / "config.json", *(file.path for file in files)]
        self._paths = paths
        self._identities = [_identity(path.stat()) for path in paths]
        self._digest = digest
        self._listing = ModelFiles(
            self._identities[0][0], tuple(WeightFileSize(file.size_bytes, file.head_bytes) for file in files)
        )
        self._pace = pace
        self._lock = threading.Lock()
        self._unkept = 0
        self._log = log.get("weights")
        self._shelf = shelf
        self._asked = False
        self._records: PieceRecords | None = None  # opened for the first who asks: most heads leave no file behind

    def serve(self, asker: NodeId, request: Message, answer: Answer) -> None:
        """See `contracts.BulkSource`. Raises RemoteProtocolError for a range outside the files."""
        match request:
            case AskModel():
                known = request.digest == self._digest
                answer(self._listing if known else NotServed("The master serves another model now."), ())
            case AskPiece():
                known = self._remembered(_key(request)) if request.known else None
                with nullcontext() if request.known and known == request.known else self._pace.turn(request.size_bytes):
                    self._serve_piece(request, answer)
            case _:
                raise RemoteProtocolError(f"A {type(request).__name__} is no question.")

    def _serve_piece(self, ask: AskPiece, answer: Answer) -> None:
        if ask.file >= len(self._paths) or ask.start + ask.size_bytes > self._identities[ask.file][0]:
            raise RemoteProtocolError("A piece was asked for that lies outside the model's files.")
        try:
            sha256, data = self._piece(ask)
        except (OSError, ChangedFileError) as error:
            self._log.error("weights cannot be read", file=self._paths[ask.file].name, error=str(error))
            answer(NotServed(f"The master cannot read {self._paths[ask.file].name} as it was: restart it."), ())
            return
        if sha256 == ask.known:
            answer(Piece(sha256), ())
        else:
            spec = TensorSpec(BYTES, "uint8", (len(data),), 0)
            answer(Piece(sha256), (TensorBuffer(spec, memoryview(data)),))

    def _piece(self, ask: AskPiece) -> tuple[bytes, bytes]:
        """Its SHA-256, and its bytes unless the asker knows them. Raises ChangedFileError, OSError."""
        key = _key(ask)
        remembered = self._remembered(key)
        if remembered is not None and remembered == ask.known:
            self._check_unchanged(self._paths[ask.file].stat(), ask.file)
            return remembered, b""
        data = self._read(ask)
        sha256 = hashlib.sha256(data).digest()
        if remembered is not None and sha256 != remembered:
            raise ChangedFileError("its bytes have changed, its date has not: the disk may be failing")
        self._remember(key, sha256)
        return sha256, data

    def _read(self, ask: AskPiece) -> bytes:
        with self._paths[ask.file].open("rb", buffering=0) as file:
            self._check_unchanged(os.fstat(file.fileno()), ask.file)
            file.seek(ask.start)
            data = b""
            while len(data) < ask.size_bytes:
                more = file.read(ask.size_bytes - len(data))
                if not more:
                    raise ChangedFileError("it became shorter")
                data += more
        return data

    def _check_unchanged(self, facts: os.stat_result, number: int) -> None:
        if _identity(facts) != self._identities[number]:
            raise ChangedFileError("it was written to since the model was chosen")

    # --- hashes ---------------------------------------------------------------------------------------------------

    def _open_records(self, shelf: Path | None) -> PieceRecords | None:
        """None where they cannot be written: then each hash is computed each time."""
        if shelf is None:
            return None
        identity = hashlib.sha256(repr([self._digest, *zip(self._paths, self._identities, strict=True)]).encode())
        try:
            return PieceRecords(kept_weights.hashes_file(shelf, self._digest), identity.digest())
        except OSError as error:
            self._log.warning("hashes of weights are not remembered", error=str(error))
            return None

    def _remembered(self, key: PieceKey) -> bytes | None:
        with self._lock:
            if not self._asked:
                self._asked, self._records = True, self._open_records(self._shelf)
            return self._records.get(key) if self._records else None

    def _remember(self, key: PieceKey, sha256: bytes) -> None:
        with self._lock:
            if self._records is None:
                return
            self._records.add(key, sha256)
            self._unkept += 1
            if self._unkept >= _KEPT_TOGETHER:
                self._keep(self._records)

    def _keep(self, records: PieceRecords) -> None:
        self._unkept = 0
        try:
            records.keep()
        except OSError as error:
            self._log.warning("hashes of weights are not remembered", error=str(error))

    def close(self) -> None:
        """Keep what was hashed."""
        with self._lock:
            if self._records is not None:
                self._keep(self._records)


def _key(ask: AskPiece) -> PieceKey:
    return PieceKey(ask.file, ask.start, ask.size_bytes)


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_size, facts.st_mtime_ns
