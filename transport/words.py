"""Pairing codes as people say and type them: `4-otter-maple-drum`, a slot number and three of 256 words, 24 bits.

The words are easy to say across a room and hard to mistype into one another: no word begins with another one, so
that a code typed without hyphens still reads in one way only, and any two differ in at least two letters. Codes
travel nowhere. Pure: never sockets, clocks or other rooms than errors.
"""

from __future__ import annotations

import difflib
import random
import re
from typing import Final

from transport.errors import PairingError

CODE_WORDS: Final = 3

_TEXT: Final = """
    acorn actor alarm album alley amber angel ankle apple apron arrow atlas attic autumn bacon badge bagel
    bakery balloon banana banjo barrel basket beach beaver bell berry bicycle bishop blanket blossom bottle
    branch bread breeze brick bridge broom brush bubble bucket buffalo butter button cabin cactus camel camera
    canal candle canoe canyon carpet carrot castle cedar cellar cello cherry chess chimney circle circus clock
    cloud clover coffee comet compass copper coral cotton cousin cradle crayon cricket crown crystal daisy
    dancer desert diamond dinner doctor dolphin dragon drum eagle earth easel echo elbow engine falcon family
    farmer feather fiddle finger flame flute forest fox garden garlic ghost giraffe glacier glove goose grape
    guitar hammer harbor hazel hedge helmet hermit honey horse hotel iceberg igloo insect island ivory jacket
    jaguar jelly jewel jigsaw juggler jungle kettle kitchen kitten koala ladder lagoon lantern laurel lemon
    leopard lettuce library lilac lion lizard llama lobster magnet mango maple marble meadow medal melon mirror
    monkey moon mosaic muffin museum napkin nectar needle night noodle nutmeg oasis ocean olive onion orange
    orbit orchid otter owl oyster palace panda paper peanut pencil pepper piano pickle pigeon pillow pirate
    planet plum poem pony potato prairie pretzel puddle pumpkin puppet puzzle quilt rabbit raccoon radio rainbow
    raven ribbon river robin rocket saddle sailor salmon sandal scarf school shadow shark shovel silver sister
    sketch spider spoon statue sugar summer sunset swan table teapot temple ticket tiger timber tomato torch
    tractor trumpet tulip tunnel turtle velvet village violin volcano waffle walnut walrus whale window winter
    yogurt zebra zipper
"""

WORDS: Final[tuple[str, ...]] = tuple(_TEXT.split())
"""256 lower-case ASCII words: one is worth 8 bits."""

_KNOWN: Final = frozenset(WORDS)
_CODE: Final = re.compile(r"\W*(\d{0,4})(.*)", re.DOTALL)
_EXAMPLE: Final = "4-otter-maple-drum"


def make_code(slot: int, rng: random.Random) -> str:
    """A code for `slot`; `rng` must be unguessable outside tests (random.SystemRandom)."""
    return "-".join((str(slot), *(rng.choice(WORDS) for _ in range(CODE_WORDS))))


def parse_code(text: str) -> tuple[int, str]:
    """(slot, code in its one normal form) of what a person typed: any case, spaces or nothing for hyphens.

    Raises PairingError, with the nearest word as a hint, before a try is spent on a misspelt code.
    """
    found = _CODE.fullmatch(text.strip().lower())
    if found is None or not found[1]:
        raise PairingError(f"A pairing code starts with a number, as in {_EXAMPLE}.")
    slot, words = int(found[1]), found[2]
    parts = [part for chunk in re.split(r"[\W_]+", words) if chunk for part in _split_words(chunk)]
    unknown = [part for part in parts if part not in _KNOWN]
    if unknown:
        raise PairingError(f"'{unknown[0][:20]}' is not a word of a pairing code.", hint=_nearest(unknown[0]))
    if len(parts) != CODE_WORDS:
        raise PairingError(f"A pairing code has {CODE_WORDS} words, as in {_EXAMPLE}.")
    return slot, "-".join((str(slot), *parts))


def _split_words(chunk: str) -> list[str]:
    """`ottermapledrum` as its words: unambiguous, because no word begins with another."""
    words: list[str] = []
    while chunk and len(words) <= CODE_WORDS:
        word = next((word for word in WORDS if chunk.startswith(word)), chunk)
        words.append(word)
        chunk = chunk[len(word) :]
    return words


def _nearest(word: str) -> str:
    near = difflib.get_close_matches(word[:20], WORDS, n=1)
    return f"Did you mean '{near[0]}'?" if near else ""
