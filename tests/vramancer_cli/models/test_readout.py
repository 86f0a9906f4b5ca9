from __future__ import annotations

from vramancer_cli.models.readout import NO_READING, PromptReading


def test_which_readings_need_every_token() -> None:
    assert PromptReading(top_logprobs=0).every_token and PromptReading(pooling="mean").every_token
    assert not PromptReading(pooling="last").every_token and not NO_READING.every_token
