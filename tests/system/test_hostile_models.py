"""Hostile model folders as a person meets them: real nodes, which refuse in one line, or serve and run nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from openai import BadRequestError, OpenAI

from build_scripts.local_cluster import LocalCluster, NodeProcess, local_cluster
from tests.helpers import hostile_checkpoints as hostile
from tests.helpers.chat_templates import REACHES_OUT
from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.hostile_checkpoints import Spoil
from tests.helpers.hub_server import Repository, hub_server

FREE_PORTS = ("--port", "0", "--node-port", "0")
CONDITIONAL = (
    "{% if 'loop' in messages[0].content %}{% for a in range(10**5) %}{% for b in range(10**5) %}"
    "{% endfor %}{% endfor %}{% endif %}{% if 'text' in messages[0].content %}{{ 'a' * 10**10 }}{% endif %}"
    "{{ messages[0].content }}"
)


def sharded(index: object) -> Spoil:
    return hostile.content("model.safetensors.index.json", json.dumps(index).encode())


def halved(folder: Path) -> None:
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


# One of each kind; all others are refused in the tests of the rooms that read them (models, engine, serving/text).
REFUSED: dict[str, tuple[Spoil, str]] = {
    "only-pt": (hostile.only_pickles("consolidated.00.pth", "model.pt", "weights.pkl"), "only as consolidated.00.pth"),
    "model-code": (hostile.brings_code("config.json"), "auto_map in config.json"),
    "pickled-tokenizer": (hostile.other_tokenizer("tokenizer.pkl"), "only tokenizer.pkl"),
    "cut-off": (halved, "cut off"),
    "million-tensors": hostile.LYING_HEADERS["a million tensors"],
    "index-out": (sharded({"weight_map": {"w": "../outside.safetensors"}}), "inside the folder"),
    "escapes": hostile.LYING_CONFIGS["other family"],
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("good") / "good", tokenizer=True, num_hidden_layers=2)


def spoiled(good: Path, folder: Path, *spoils: Callable[[Path], None]) -> Path:
    shutil.copytree(good, folder)
    for spoil in spoils:
        spoil(folder)
    return folder


def test_hostile_folders_end_start_with_one_line(good: Path, tmp_path: Path) -> None:
    """Exit code 1, one error line, no payload has run. Two at a time: most of them load torch."""

    def start(name: str) -> tuple[str, int | None, str]:
        folder = spoiled(good, tmp_path / name / "model", REFUSED[name][0])
        command = ["start", "--master", "--model", str(folder), *FREE_PORTS]
        node = NodeProcess.launch(tmp_path / name / "state", command)
        try:
            node.process.wait(60)
        finally:
            node.kill()
        return name, node.process.returncode, node.output

    with ThreadPoolExecutor(2) as pool:
        for name, code, output in pool.map(start, REFUSED):
            errors = [line for line in output.splitlines() if line.startswith("error:")]
            assert (code, len(errors)) == (1, 1), f"{name}: {output}"
            assert REFUSED[name][1].split("|")[0] in errors[0], name
            assert "Traceback" not in output and "\x1b" not in output, f"{name}: {output}"
            assert not hostile.marker_of(tmp_path / name / "model").exists(), name


@pytest.fixture(scope="module")
def laden(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalCluster, Path]]:
    """A head that serves good weights with pickles and code beside them, and a template that some messages set off."""
    folder = spoiled(
        good,
        tmp_path_factory.mktemp("laden") / "model",
        hostile.put_pickles,
        hostile.put_code,
        hostile.content("chat_template.jinja", CONDITIONAL.encode()),
    )
    with local_cluster(folder.parent / "nodes") as cluster:
        cluster.start_head("--model", str(folder))
        cluster.wait_ready(1)
        yield cluster, folder
        assert "Traceback" not in cluster.head.output


def chat(cluster: LocalCluster, text: str, model: str = "model") -> str:
    with OpenAI(base_url=f"{cluster.head.api_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        message = {"role": "user", "content": text}
        answer = client.chat.completions.create(model=model, messages=[message], max_tokens=2)  # pyright: ignore[reportArgumentType]
    return str(answer.choices[0].finish_reason)


def complete(cluster: LocalCluster, model: str = "model") -> str:
    with OpenAI(base_url=f"{cluster.head.api_url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        return str(client.completions.create(model=model, prompt="several", max_tokens=2).choices[0].finish_reason)


def test_pickles_and_code_beside_the_weights_are_ignored(laden: tuple[LocalCluster, Path]) -> None:
    """What watches every process of the tests (helpers/unpickling) fails this test if one of them is even opened."""
    cluster, folder = laden
    assert chat(cluster, "several machines") == complete(cluster) == "length"
    assert not hostile.marker_of(folder).exists()


@pytest.mark.parametrize("kind", ["loop", "text"])
def test_a_template_that_runs_away_is_refused_while_others_are_served(
    laden: tuple[LocalCluster, Path], kind: str
) -> None:
    cluster, _ = laden
    head = psutil.Process(cluster.head.process.pid)
    before = head.memory_full_info().uss

    def run_away(_: int) -> str:
        with pytest.raises(BadRequestError) as refused:
            chat(cluster, kind)
        assert refused.value.code == "chat_template_refused"
        return str(refused.value)

    with ThreadPoolExecutor(8) as pool:
        refusals = [pool.submit(run_away, number) for number in range(24)]
        assert [complete(cluster) for _ in range(5)] == ["length"] * 5
        assert cluster.client.status().state == "ready"
        assert all("chat template is refused" in refusal.result() for refusal in refusals)
    assert chat(cluster, "several machines") == "length"
    assert head.memory_full_info().uss - before < 96 << 20


def test_a_model_whose_template_is_refused_still_completes(good: Path, tmp_path: Path) -> None:
    """And says so when it is started, in its log."""
    reaching = "{{ cycler.__init__.__globals__.os.system('touch " + str(tmp_path / hostile.MARKER) + "') }}"
    folder = spoiled(good, tmp_path / "model", hostile.content("chat_template.jinja", reaching.encode()))
    with local_cluster(tmp_path / "nodes") as cluster:
        cluster.start_head("--model", str(folder))
        cluster.wait_ready(1)
        with pytest.raises(BadRequestError, match="chat template is refused"):
            chat(cluster, "several")
        assert complete(cluster) == "length"
        assert "chats are refused" in cluster.head.output
    assert not (tmp_path / hostile.MARKER).exists()


def test_a_hostile_template_that_comes_from_the_hub_is_refused(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way of a stranger's model: a hub, a download into the hub's cache, a node, a chat."""
    marker = tmp_path / hostile.MARKER
    files = {path.name: path.read_bytes() for path in good.iterdir()}
    files["chat_template.jinja"] = REACHES_OUT["globals"].replace("MARK", f"'touch {marker}'").encode()
    with hub_server() as hub, local_cluster(tmp_path / "nodes") as cluster:
        hub.repositories["org/model"] = Repository(files)
        for name, value in {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(name, value)
        cluster.start_head("--model", "org/model")
        cluster.wait_ready(1)
        assert "GET /org/model/resolve" in " ".join(hub.asked)
        assert any("chat_template.jinja" in asked for asked in hub.asked)
        with pytest.raises(BadRequestError, match="chat template is refused") as refused:
            chat(cluster, "several", model="org/model")
        assert refused.value.code == "chat_template_refused"
        assert complete(cluster, model="org/model") == "length"
        assert "Traceback" not in cluster.head.output
    assert not marker.exists()


def test_the_head_is_watched(laden: tuple[LocalCluster, Path]) -> None:
    """Else ignored pickles would prove nothing."""
    cluster, _ = laden
    environment = psutil.Process(cluster.head.process.pid).environ()
    assert environment["UNPICKLING_LOG"] == os.environ["UNPICKLING_LOG"]
    assert environment["PYTHONPATH"] == os.environ["PYTHONPATH"]
