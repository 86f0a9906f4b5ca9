"""VTP frames: a 64-byte header, msgpack meta, raw payload. Bytes in, frames out.

Pure: no socket, loop, thread or clock, and nothing here knows what a frame means. A frame is never trusted:
the header carries its own CRC-32 and the meta's. The payload carries none: every link runs over TLS 1.3, whose
AEAD already rejects a changed byte, and a second pass over 64 MB would cost more than the encryption.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Final

import msgspec

from transport.errors import RemoteProtocolError

MAGIC: Final = b"VTP1"
HEADER_BYTES: Final = 64
OPTIONAL: Final = 1
"""Flag bit 0: a receiver that does not know the type skips the frame. All other bits must be 0."""

_FIELDS: Final = Struct("<4sBBHIIQQIIQ12s")  # all of the header but its checksum: 60 bytes
_CHECKSUM: Final = Struct("<I")
_RESERVED: Final = bytes(12)

Allocate = Callable[[int], memoryview]
"""Gives a writable, C-contiguous buffer (format "B") of exactly so many bytes, for one payload."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a receiver allocates for one frame. A control link takes no payload."""

    max_meta_bytes: int = 1 << 20
    max_payload_bytes: int = 0


CONTROL_LIMITS: Final = Limits()
DATA_LIMITS: Final = Limits(max_payload_bytes=256 << 20)
BULK_LIMITS: Final = Limits(max_payload_bytes=2 << 20)


class FrameHeader(msgspec.Struct, frozen=True):
    """Sizes in bytes. `major` and `minor` are the sender's protocol version: refusing one is not framing's business."""

    major: int
    minor: int
    type: int
    flags: int
    epoch: int
    number: int
    meta_length: int
    meta_crc32: int
    payload_length: int

    @property
    def optional(self) -> bool:
        return bool(self.flags & OPTIONAL)

    def pack(self) -> bytes:
        """64 bytes. Raises struct.error for a value that its field does not hold."""
        fields = _FIELDS.pack(
            MAGIC, self.major, self.minor, self.type, self.flags, 0, self.epoch, self.number,
            self.meta_length, self.meta_crc32, self.payload_length, _RESERVED,
        )  # fmt: skip
        return fields + _CHECKSUM.pack(zlib.crc32(fields))

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> FrameHeader:
        """From exactly 64 bytes. Raises RemoteProtocolError; lengths are not yet held against any limit."""
        header = bytes(data)
        if len(header) != HEADER_BYTES or not header.startswith(MAGIC):
            raise RemoteProtocolError("The other side does not speak VTP.")
        fields, checksum = header[: _FIELDS.size], header[_FIELDS.size :]
        if _CHECKSUM.pack(zlib.crc32(fields)) != checksum:
            raise RemoteProtocolError("A frame header arrived damaged.")
        _, major, minor, kind, flags, zero, epoch, number, meta, crc32, payload, reserved = _FIELDS.unpack(fields)
        if kind == 0 or flags & ~OPTIONAL or zero or reserved != _RESERVED:
            raise RemoteProtocolError("A frame header uses bits that this protocol version does not define.")
        return cls(major, minor, kind, flags, epoch, number, meta, crc32, payload)


class Frame(msgspec.Struct, frozen=True):
    """One whole frame. `payload` is the buffer that `allocate` gave, filled; it is empty without a payload."""

    header: FrameHeader
    meta: memoryview
    payload: memoryview


def heap_buffer(size_bytes: int) -> memoryview:
    """The default. Measured for 16 MiB frames: the heap's warm pages beat a fresh mapping's page faults by a third."""
    return memoryview(bytearray(size_bytes))


def admit_all(_: FrameHeader) -> None:
    """The default of FrameParser's `admit`."""


_EMPTY: Final = memoryview(b"")


class FrameParser:
    """Cuts a byte stream into frames.

    A socket reads straight into `wanted()` and reports with `advance`: no byte is copied. Streams and tests give
    whatever bytes they have to `feed` and take frames from `next_event`. Use one way or the other.
    `admit(header)` runs before anything is allocated for the frame and raises RemoteProtocolError to refuse it.
    Every fault is a RemoteProtocolError, and the parser raises it again from then on.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        allocate: Allocate = heap_buffer,
        admit: Callable[[FrameHeader], None] = admit_all,
    ) -> None:
        self._limits = limits
        self._allocate = allocate
        self._admit = admit
        self._header_buffer = heap_buffer(HEADER_BYTES)
        self._pending = bytearray()
        self._error: RemoteProtocolError | None = None
        self._expect_header()

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and is not complete: from here on silence has a deadline."""
        return self._header is not None or self._filled > 0

    def wanted(self) -> memoryview:
        """Where the next bytes belong; never empty. Raises RemoteProtocolError after a fault."""
        if self._error:
            raise self._error
        return self._target[self._filled :]

    def advance(self, count: int) -> Frame | None:
        """`count` bytes were written to the start of `wanted()`. Gives the frame that they complete, if any."""
        try:
            return self._advance(count)
        except RemoteProtocolError as error:
            self._error = error
            raise

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        self._pending += data

    def next_event(self) -> Frame | None:
        """The next whole frame of what was fed, or None when more bytes are needed."""
        taken = 0
        frame = None
        while frame is None and taken < len(self._pending):
            target = self.wanted()
            count = min(len(target), len(self._pending) - taken)
            target[:count] = self._pending[taken : taken + count]
            taken += count
            frame = self.advance(count)
        del self._pending[:taken]
        return frame

    def _expect_header(self) -> None:
        self._header: FrameHeader | None = None
        self._meta = _EMPTY
        self._in_payload = False
        self._expect(self._header_buffer)

    def _expect(self, target: memoryview) -> None:
        self._target = target
        self._filled = 0

    def _advance(self, count: int) -> Frame | None:
        self._filled += count
        if self._filled < len(self._target):
            self._check_beginning()
            return None
        if self._header is None:
            return self._header_complete()
        return self._finish(self._target) if self._in_payload else self._meta_complete(self._header)

    def _check_beginning(self) -> None:
        """Refuse a stranger (plain HTTP, say) by its first bytes: it may never send 64."""
        beginning = bytes(self._header_buffer[: min(self._filled, len(MAGIC))])
        if self._header is None and not MAGIC.startswith(beginning):
            raise RemoteProtocolError("The other side does not speak VTP.")

    def _header_complete(self) -> Frame | None:
        header = FrameHeader.unpack(self._header_buffer)
        self._admit(header)
        if header.meta_length > self._limits.max_meta_bytes or header.payload_length > self._limits.max_payload_bytes:
            raise RemoteProtocolError(
                f"A frame of {header.meta_length} + {header.payload_length} bytes is over this link's limit of "
                f"{self._limits.max_meta_bytes} + {self._limits.max_payload_bytes}."
            )
        self._header = header
        self._expect(heap_buffer(header.meta_length))
        return self._meta_complete(header) if header.meta_length == 0 else None

    def _meta_complete(self, header: FrameHeader) -> Frame | None:
        self._meta = self._target
        if zlib.crc32(self._meta) != header.meta_crc32:
            raise RemoteProtocolError("A frame's meta arrived damaged.")
        if header.payload_length == 0:
            return self._finish(_EMPTY)
        self._in_payload = True
        self._expect(self._allocate(header.payload_length))
        return None

    def _finish(self, payload: memoryview) -> Frame | None:
        assert self._header is not None
        frame = Frame(self._header, self._meta, payload)
        self._expect_header()
        return frame
