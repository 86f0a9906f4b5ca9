from __future__ import annotations

from vramancer_cli.models.readout import TokenScore
from vramancer_cli.serving.logprobs import TextLogprobs, chat_logprobs
from vramancer_cli.serving.token_bytes import TokenBytes

EURO = "€".encode()
PIECES = {0: "<s>", 1: "one", 2: "<0xE2>", 3: "<0x82>", 4: "<0xAC>", 5: "▁two"}
DECODER = b'{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"\xe2\x96\x81"},"content":" "},{"type":"ByteFallback"}]}'  # noqa: E501
TOKENS = TokenBytes(PIECES.get, DECODER, frozenset({0}), frozenset({0}))


def test_chat_style_lists_bytes_and_writes_half_characters_by_them() -> None:
    told = chat_logprobs([TokenScore(1, -0.5, ((1, -0.5), (2, -1.5)))], TOKENS)
    assert told == {
        "content": [
            {
                "token": "one",
                "logprob": -0.5,
                "bytes": [111, 110, 101],
                "top_logprobs": [
                    {"token": "one", "logprob": -0.5, "bytes": [111, 110, 101]},
                    {"token": "\\xe2", "logprob": -1.5, "bytes": [0xE2]},
                ],
            }
        ],
        "refusal": None,
    }


def test_offsets_count_characters_over_parts_and_half_characters() -> None:
    logprobs = TextLogprobs(TOKENS)
    first = logprobs.part([TokenScore(0, None), TokenScore(1, -1.0), TokenScore(2, -2.0, ((1, -0.5),))])
    second = logprobs.part([TokenScore(3, -1.0), TokenScore(4, -1.0), TokenScore(5, -1.0), TokenScore(1, -1.0)])
    assert first == {
        "tokens": ["<s>", "one", "bytes:\\xe2"],
        "token_logprobs": [None, -1.0, -2.0],
        "top_logprobs": [None, {"one": -1.0}, {"one": -0.5, "bytes:\\xe2": -2.0}],
        "text_offset": [0, 0, 3],
    }
    assert second["text_offset"] == [3, 3, 4, 8]
