"""Hidden states in fewer bits, for a link that is slower than rounding: int8 or int4, with a scale for each group.

A group never spans rows, so that a request does not feel its neighbours. Scales have the dtype of what was rounded, so
that it can be had back as it was. docs/activations.md has bounds and figures. Must never know what a link is.
"""

from __future__ import annotations

import time
from typing import Final

import torch

from transport.errors import RemoteProtocolError
from transport.framing import DATA_LIMITS
from transport.types import ActivationFormat
from vramancer_cli.models.activation_format import GROUP_ELEMENTS

_MOST: Final = {torch.int8: 127, torch.uint8: 7}
"""The largest code by the dtype that codes cross in: symmetric, so that a vector and its negative round alike."""
_AT_ONCE: Final = 1 << 18
"""Elements rounded in one go: what lies in between stays in a core's cache, and in memory that is warm."""
_TIMED_ROWS: Final = 256
_TIMED_WIDTH: Final = 2048
_TIMINGS: Final = 3


def fitting(form: ActivationFormat, width: int) -> ActivationFormat:
    """`form`, or one that rows of `width` elements can be rounded to: int4 wants two halves of whole groups."""
    return "int8" if form == "int4" and width % (2 * GROUP_ELEMENTS["int4"]) else form


def rounded(rows: torch.Tensor, form: ActivationFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, scales) of `rows` [tokens, width], of a float dtype.

    int8: codes [tokens, width] int8. int4: codes [tokens, width / 2] uint8, the first half of a row in the low bits.
    Scales [tokens, groups]. Each element comes back within half a scale, and its dtype's own rounding; what is not
    finite gives such scales.
    """
    form = fitting(form, rows.shape[1])
    parts = [_rounded(part, form) for part in rows.split(max(1, _AT_ONCE // max(1, rows.shape[1])))]
    codes, scales = zip(*parts, strict=True)
    return torch.cat(codes), torch.cat(scales)


def _rounded(rows: torch.Tensor, form: ActivationFormat) -> tuple[torch.Tensor, torch.Tensor]:
    size = GROUP_ELEMENTS[form] if rows.shape[1] % GROUP_ELEMENTS[form] == 0 else rows.shape[1]
    kind = torch.int8 if form == "int8" else torch.uint8
    groups = rows.float().unflatten(1, (-1, size))
    scales = (groups.abs().amax(-1) / _MOST[kind]).to(rows.dtype)
    exact = scales.float()
    inverse = torch.where(exact > 0, 1 / exact, 0.0)
    codes = (groups * inverse.unsqueeze(-1)).round_().flatten(1)
    if kind == torch.int8:
        return codes.to(torch.int8), scales
    low, high = codes.add_(8).to(torch.uint8).chunk(2, dim=1)
    return low | (high << 4), scales


def restored(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What `rounded` was given, about. Raises RemoteProtocolError for codes and scales that do not fit together."""
    width = codes.shape[1] * (2 if codes.dtype == torch.uint8 else 1)
    tokens, groups = scales.shape
    if codes.dtype not in _MOST or not scales.is_floating_point():
        raise RemoteProtocolError(f"Rounded hidden states came as {codes.dtype} with scales of {scales.dtype}.")
    if tokens != codes.shape[0] or groups == 0 or width == 0 or width % groups:
        raise RemoteProtocolError(f"Rounded hidden states {list(codes.shape)} came with scales {list(scales.shape)}.")
    if tokens * width * scales.itemsize > DATA_LIMITS.max_payload_bytes:
        raise RemoteProtocolError(f"Rounded hidden states of {tokens} x {width} came: no frame holds as many.")
    if codes.dtype == torch.uint8:
        codes = torch.cat((codes & 15, codes >> 4), dim=1).to(torch.int8) - 8
    return (codes.view(tokens, groups, width // groups) * scales.unsqueeze(-1)).flatten(1)


class RoundingCost:
    """What rounding and restoring costs on a device, measured once for each form and dtype."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[tuple[ActivationFormat, torch.dtype], tuple[float, float]] = {}

    def seconds(self, form: ActivationFormat, rows: torch.Tensor) -> float:
        """For rounding `rows`, and having them back at an end that is as fast. On the device's thread."""
        key = (form, rows.dtype)
        if key not in self._known:
            one_s, many_s = (self._measured(form, tokens, rows.dtype) for tokens in (1, _TIMED_ROWS))
            self._known[key] = (one_s, max(0.0, many_s - one_s) / (_TIMED_ROWS * _TIMED_WIDTH))
        fixed_s, element_s = self._known[key]
        return fixed_s + element_s * rows.numel()

    def _measured(self, form: ActivationFormat, tokens: int, dtype: torch.dtype) -> float:
        sample = torch.ones(tokens, _TIMED_WIDTH, dtype=dtype, device=self._device)
        times: list[float] = []
        for _ in range(_TIMINGS):
            began_s = time.perf_counter()
            restored(*(part.cpu().to(self._device) for part in rounded(sample, form))).cpu()
            times.append(time.perf_counter() - began_s)
        return min(times)
