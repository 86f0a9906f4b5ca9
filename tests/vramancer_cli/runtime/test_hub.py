"""Models from a hub: a real HTTP server on loopback, the real client, each case in a process of its own.

A process, because the hub's client reads its environment once; each takes about a second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.hub_server import COMMIT, Hub, Repository, hub_server

WEIGHTS = bytes(range(256)) * 12_000
CONFIG = b'{"model_type": "llama"}'
SMALL = {"config.json": CONFIG, "tokenizer.json": b"{}", "tokenizer_config.json": b"{}"}

SCRIPT = """
import asyncio, sys
from pathlib import Path
from vramancer_cli.runtime import hub_blobs, store
from vramancer_cli.errors import ModelError
hub_blobs._RETRY_S = 0.01
shelf = Path(sys.argv[2])
told = []
try:
    source, location, folder = asyncio.run(store.locate_choice(sys.argv[1], shelf, lambda *now: told.append(now)))
    print(source, location, *sorted(path.name for path in folder.iterdir()))
    print("told", told[-1] if told else "nothing")
except ModelError as error:
    print("refused:", error, "|", error.hint)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as serving:
        serving.repositories["org/there"] = Repository({**SMALL, "model.safetensors": WEIGHTS})
        yield serving


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hf"


def locate(model: str, hub: Hub | str, cache: Path, **environment: str) -> str:
    url = hub if isinstance(hub, str) else hub.url
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**kept, "HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **environment}
    run = [sys.executable, "-c", SCRIPT, model, str(cache / "shelf")]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "it/s" not in done.stderr, "a bar of the hub's own"
    return done.stdout.strip()


def fetched(hub: Hub) -> list[str]:
    return [file for file, _, _ in hub.sent]


def snapshot(cache: Path, repository: str = "org/there") -> Path:
    return cache / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT


# --- what comes ---------------------------------------------------------------------------------------------------


def test_a_model_comes_once_without_its_other_forms(hub: Hub, cache: Path) -> None:
    others = {
        "pytorch_model.bin": b"never",
        "consolidated.safetensors": b"never",
        "run.py": b"never",
        "a/b.json": b"{}",
    }
    hub.repositories["org/there"].files |= others
    answer = locate("org/there", hub, cache).splitlines()
    assert answer[0] == "hub org/there config.json model.safetensors tokenizer.json tokenizer_config.json"
    assert answer[1] == f"told ('org/there', {len(WEIGHTS)}, {len(WEIGHTS)})"
    assert fetched(hub) == ["model.safetensors"]
    assert locate("org/there", hub, cache).splitlines()[1] == "told nothing"
    assert fetched(hub) == ["model.safetensors"]


def test_of_several_files_those_that_the_index_names(hub: Hub, cache: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    hub.repositories["org/there"].files |= {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1.safetensors": b"one" * 1000,
        "model-2.safetensors": b"two" * 1000,
    }
    locate("org/there", hub, cache)
    assert sorted(fetched(hub)) == ["model-1.safetensors", "model-2.safetensors"]


def test_a_revision_can_be_named(hub: Hub, cache: Path) -> None:
    hub.repositories["org/there"].revisions = ("main", "v1.1")
    assert locate("org/there@v1.1", hub, cache).startswith("hub org/there@v1.1 config.json")
    assert any("/revision/v1.1" in path for path in hub.asked)
    refused = locate("org/there@v9", hub, cache)
    assert refused.startswith("refused: 'org/there' has no revision 'v9'.")


def test_once_fetched_it_needs_no_hub(hub: Hub, cache: Path) -> None:
    locate("org/there", hub, cache)
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        assert locate("org/there", hub, cache, **environment).startswith("hub org/there config.json model.safetensors")


def test_a_token_opens_what_is_gated_or_private(hub: Hub, cache: Path) -> None:
    for name, access in (("org/gated", "gated"), ("org/private", "private")):
        hub.repositories[name] = Repository(hub.repositories["org/there"].files, access)
        assert locate(name, hub, cache, HF_TOKEN="hf_right").startswith(f"hub {name} config.json")


# --- half of it -----------------------------------------------------------------------------------------------------


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub, cache: Path) -> None:
    hub.cut_after = 1_000_000
    assert locate("org/there", hub, cache).startswith("hub org/there")
    assert [start for _, start, _ in hub.sent] == [0, 1_000_000, 2_000_000, 3_000_000]


def test_a_download_that_was_given_up_goes_on_at_the_next_start(hub: Hub, cache: Path) -> None:
    hub.cut_after = 0
    blobs = snapshot(cache).parent.parent / "blobs"
    assert "could not be fetched" in locate("org/there", hub, cache)
    [part] = blobs.glob("*.vramancer-part")
    part.write_bytes(WEIGHTS[:2_000_000])  # as a killed process leaves it
    hub.cut_after = None
    hub.sent.clear()
    assert locate("org/there", hub, cache).startswith("hub org/there")
    assert hub.sent == [("model.safetensors", 2_000_000, len(WEIGHTS) - 2_000_000)]
    assert (snapshot(cache) / "model.safetensors").read_bytes() == WEIGHTS
    assert not list(blobs.glob("*.vramancer-part"))


# --- what is not what it should be ------------------------------------------------------------------------------------


def test_a_file_that_arrives_damaged_is_never_used(hub: Hub, cache: Path) -> None:
    hub.spoil["model.safetensors"] = WEIGHTS[:-1] + b"!"
    assert "model.safetensors arrived damaged twice" in locate("org/there", hub, cache)
    assert not (snapshot(cache) / "model.safetensors").exists()


def test_more_than_was_said_is_refused(hub: Hub, cache: Path) -> None:
    hub.spoil["model.safetensors"] = WEIGHTS + b"!"
    assert "sends more of model.safetensors" in locate("org/there", hub, cache)


@pytest.mark.parametrize("change", [lambda data: data[:-7], lambda data: data[:99] + b"!" + data[100:]])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_truncated_or_flipped_in_the_cache_is_found_and_fetched_again(
    hub: Hub, cache: Path, name, change
) -> None:
    hub.repositories["org/there"].files["tokenizer.json"] = b'{"a": "%s"}' % (b"x" * 200)
    locate("org/there", hub, cache)
    blob = (snapshot(cache) / name).resolve()
    right = blob.read_bytes()
    blob.write_bytes(change(right))
    offline = locate("org/there", hub, cache, HF_HUB_OFFLINE="1")
    assert offline.startswith(f"refused: {name} of 'org/there' is damaged")
    assert locate("org/there", hub, cache).startswith("hub org/there")
    assert (snapshot(cache) / name).read_bytes() == right


# --- what is refused, and nothing of it is fetched ------------------------------------------------------------------


def test_each_refusal_is_its_own_sentence(hub: Hub, cache: Path) -> None:
    hub.repositories["org/gated"] = Repository(SMALL | {"model.safetensors": b"x"}, "gated")
    hub.repositories["org/private"] = Repository(SMALL | {"model.safetensors": b"x"}, "private")
    hub.repositories["org/pickled"] = Repository(SMALL | {"pytorch_model.bin": b"x"})
    hub.repositories["org/empty"] = Repository(SMALL)
    hub.repositories["org/code"] = Repository(
        SMALL | {"model.safetensors": b"x", "config.json": b'{"auto_map": {"AutoModel": "m.Evil"}}', "m.py": b"evil"}
    )
    said = {
        "org/missing": "The hub has no model 'org/missing'.",
        "org/gated": "'org/gated' is gated.",
        "org/private": "The hub has no model 'org/private'.",
        "org/pickled": "'org/pickled' has its weights only as pytorch_model.bin",
        "org/empty": "'org/empty' has no .safetensors file.",
        "org/code": "The model brings its own Python code (auto_map in config.json)",
    }
    for name, sentence in said.items():
        assert locate(name, hub, cache).startswith(f"refused: {sentence}"), name
    assert hub.sent == []
    assert not any(path.endswith(".py") for path in hub.asked)


def test_no_hub_at_all_and_a_hub_that_may_not_be_asked(cache: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    assert locate("org/there", nowhere, cache).startswith("refused: 'org/there' could not be fetched from the hub")
    offline = locate("org/there", nowhere, cache, HF_HUB_OFFLINE="1")
    assert offline.startswith("refused: 'org/there' is not in the hub's cache, and HF_HUB_OFFLINE forbids")


def test_an_index_that_names_what_the_repository_has_not(hub: Hub, cache: Path) -> None:
    index = {"weight_map": {"a": "../../../outside.safetensors"}}
    hub.repositories["org/there"].files["model.safetensors.index.json"] = json.dumps(index).encode()
    assert "names files that the repository does not have" in locate("org/there", hub, cache)
    assert hub.sent == []
