from __future__ import annotations

import operator
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from transport import discovery
from transport.identity import ClusterAuthority, make_key
from transport.types import Address, DeviceFacts, Peer
from vramancer_cli.doctor import child, computing, examination, program, surroundings
from vramancer_cli.doctor import families as family_checks
from vramancer_cli.doctor.finding import Check, Finding, Observation
from vramancer_cli.doctor.surroundings import Surroundings
from vramancer_cli.engine import devices, families, native, trial
from vramancer_cli.models import catalog
from vramancer_cli.runtime import enrolment, run_file
from vramancer_cli.runtime.run_file import RunRecord
from vramancer_cli.runtime.state_folder import StateFolder
from vramancer_cli.serving import page_routes
from vramancer_cli.settings import UsageError

CPU = DeviceFacts("cpu", 0, "Old Faithful", 8 << 30, 4 << 30)
GPU = DeviceFacts("cuda", 0, "Bright Star", 16 << 30, 15 << 30)


def found(look: Callable[[], Observation], deadline_s: float = 60.0) -> Finding:
    return Check("thing", look, deadline_s).run()


def around(folder: Path, port: int = 0, node_port: int = 0) -> Surroundings:
    return Surroundings(folder, port, node_port)


# --- running a check ------------------------------------------------------------------------------------------------


def test_a_look_becomes_a_finding_in_one_line() -> None:
    assert found(lambda: Observation("two\n lines", "warning", "do\nthis")) == Finding(
        "thing", "warning", "two lines", "do this"
    )


def test_a_named_error_brings_its_own_hint() -> None:
    def look() -> Observation:
        raise UsageError("It is so.", hint="Do that.")

    assert found(look) == Finding("thing", "failed", "It is so.", "Do that.")


def test_a_surprise_says_its_kind_and_where_it_came_from() -> None:
    finding = found(lambda: Observation(str(1 // 0)))
    assert (finding.state, finding.hint) == ("failed", "Install VRAMancer again.")
    assert finding.words.startswith(
        "ZeroDivisionError: integer division or modulo by zero (vramancer_cli/test_doctor.py:"
    )


def test_a_missing_module_has_one_hint_whatever_was_looked_at() -> None:
    def look() -> Observation:
        import not_there_at_all  # pyright: ignore[reportMissingImports]

        return Observation(str(not_there_at_all))

    assert Check("thing", look, hint="Try elsewhere.").run().hint == "Install VRAMancer again."
    assert Check("thing", lambda: Observation(str(1 // 0)), hint="Try elsewhere.").run().hint == "Try elsewhere."


def test_even_an_exit_is_only_a_finding() -> None:
    assert found(lambda: sys.exit(3)).words.startswith("SystemExit: 3")


def test_what_hangs_is_left_behind() -> None:
    never = threading.Event()

    def look() -> Observation:
        never.wait()
        return Observation("woken")

    finding = found(look, deadline_s=0.1)
    never.set()
    assert (finding.state, finding.words) == ("failed", "did not finish within 0.1 s")


def test_names_are_told_apart() -> None:
    names = [check.name for check in examination.checks("a build", around(Path("nowhere")))]
    assert len(set(names)) == len(names) >= 16


# --- the program ----------------------------------------------------------------------------------------------------


def test_the_program_and_its_surroundings_are_named() -> None:
    assert found(lambda: program.program("vramancer 7")).words.startswith("vramancer 7; in ")
    assert "CPython" in found(program.python).words
    assert "CPU cores" in found(program.system).words


def test_every_module_imports() -> None:
    finding = found(program.modules)
    assert finding.state == "ok", finding.words
    assert int(finding.words.split()[1]) > 90


def test_a_module_that_does_not_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "halfhouse" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "halfhouse" / "__init__.py").write_text("")
    (inner / "__init__.py").write_text("")
    (inner / "sound.py").write_text("")
    (inner / "broken.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(program, "_PACKAGES", ("halfhouse",))
    finding = found(program.modules)
    assert finding.state == "failed"
    assert "1 of 3 modules" in finding.words
    assert "halfhouse.inner.broken: ModuleNotFoundError" in finding.words


def test_a_build_without_any_module_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "emptyhouse").mkdir()
    (tmp_path / "emptyhouse" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(program, "_PACKAGES", ("emptyhouse",))
    assert found(program.modules).state == "failed"


def test_the_pinned_libraries_are_here() -> None:
    finding = found(program.libraries)
    assert (finding.state, finding.words) == ("ok", ", ".join(f"{k} {v}" for k, v in trial.versions().items()))


def test_another_version_than_the_pinned_one_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["torch==2.13.0", "transformers==4.0.1", "rich"])
    finding = found(program.libraries)
    assert finding.state == "failed"
    assert "transformers is 5" in finding.words and "for 4.0.1" in finding.words
    assert finding.hint == "Install transformers==4.0.1."


def test_a_program_without_metadata_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert found(program.libraries).words == "The program's own metadata is missing."


def test_the_page_is_there_and_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(program.page).state == "ok"
    monkeypatch.setattr(page_routes, "FILES", {**page_routes.FILES, "/more.js": ("more.js", "text/javascript")})
    finding = found(program.page)
    assert finding.state == "failed"
    assert "more.js" in finding.words and "index.html" not in finding.words


# --- computing ------------------------------------------------------------------------------------------------------


def test_the_devices_of_this_machine_multiply() -> None:
    finding = found(computing.devices)
    assert finding.state in ("ok", "warning")
    assert "cpu " in finding.words and "GiB free" in finding.words


def with_devices(monkeypatch: pytest.MonkeyPatch, *there: DeviceFacts, fails: tuple[str, ...] = ()) -> None:
    """This machine as if it had these devices; `fails`: what they cannot multiply."""

    def multiply(device: DeviceFacts, dtype: str) -> None:
        if device.kind == "cuda" and dtype in fails:
            raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(devices, "list_devices", lambda: list(there))
    monkeypatch.setattr(trial, "multiply", multiply)


def test_a_device_that_cannot_multiply_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_devices(monkeypatch, GPU, CPU, fails=("float32", "bfloat16"))
    finding = found(computing.devices)
    assert finding.state == "failed"
    assert finding.words.startswith("cuda:0 Bright Star, 15.0 GiB of 16.0 GiB free; cpu Old Faithful, ")
    assert "cuda:0 cannot multiply float32: RuntimeError: no kernel image" in finding.words


def test_a_device_without_bfloat16_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    with_devices(monkeypatch, GPU, CPU, fails=("bfloat16",))
    finding = found(computing.devices)
    assert finding.state == "warning"
    assert "--dtype float32" in finding.hint


def test_a_card_that_torch_does_not_see_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computing, "_driver_gpus", lambda: ["Bright Star"])
    with_devices(monkeypatch, CPU)
    finding = found(computing.devices)
    assert finding.state == "warning"
    assert "does not see Bright Star" in finding.words
    with_devices(monkeypatch, GPU, CPU)
    assert found(computing.devices).state == "ok"


def test_the_kernels_for_quantised_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "instruction_set", lambda: "AVX2")
    assert found(computing.kernels) == Finding("thing", "ok", "VRAMancer's own, with AVX2")
    monkeypatch.undo()
    monkeypatch.setattr(native, "is_there", lambda: False)
    assert found(computing.kernels).words == "torch's; VRAMancer's own are not part of this installation"


def test_threads_compute_at_once() -> None:
    assert found(computing.threads) == Finding("thing", "ok", f"{computing.THREADS} compute at once")


def test_a_thread_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with_devices(monkeypatch, GPU, fails=("float32",))
    monkeypatch.setattr(trial, "multiply", lambda device: operator.truediv(1, 0))
    assert "A thread could not compute: ZeroDivisionError" in found(computing.threads).words


def test_threads_that_never_run_together_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose thread hangs before the others are there."""
    hang = threading.Event()
    monkeypatch.setattr(computing, "THREAD_S", 0.2)
    monkeypatch.setattr(trial, "multiply", lambda device: hang.wait())
    finding = found(computing.threads)
    hang.set()
    assert "did not compute within 0.2 s" in finding.words


def test_a_child_process_answers() -> None:
    finding = found(computing.child_process)
    assert finding.state == "ok", finding.words
    assert finding.words.startswith("answered after ")


def test_a_child_that_ends_without_an_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "answer", operator.eq)  # as if the child had done something else
    assert found(computing.child_process).words == "A child process ended with 0 and no answer."


def test_a_child_that_is_another_program_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = child.facts
    monkeypatch.setattr(child, "facts", lambda question: real(question) | {"version": "other"})  # not in the child
    assert found(computing.child_process).words.startswith("A child process gave a wrong answer: ")


def test_the_built_in_model_answers() -> None:
    finding = found(computing.builtin_model)
    assert finding.state == "ok", finding.words
    assert "'VRAMancer " in finding.words


def damaged_guide(folder: Path, name: str, damage: Callable[[bytes], bytes]) -> Path:
    copy = Path(shutil.copytree(catalog.builtin_folder(), folder))
    (copy / name).write_bytes(damage((copy / name).read_bytes()))
    return copy


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("model.safetensors", lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2), ""),
        ("model.safetensors", lambda data: data[:-100], "cut off or damaged"),
        ("tokenizer.json", lambda data: data[:1000], ""),
        ("chat_template.jinja", lambda data: b"", ""),
    ],
    ids=["zeroed weights", "short weights", "half a tokenizer", "no template"],
)
def test_a_damaged_model_has_failed(
    name: str, damage: Callable[[bytes], bytes], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = damaged_guide(tmp_path / "guide", name, damage)
    monkeypatch.setattr(catalog, "builtin_folder", lambda: folder)
    finding = found(computing.builtin_model)
    assert finding.state == "failed"
    assert words in finding.words


# --- around the program ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_a_folder_that_is_not_there_is_not_made(folder: Path) -> None:
    finding = found(around(folder).state_folder)
    assert (finding.state, finding.words) == ("ok", f"{folder} will be made at the first start")
    assert not folder.exists()


def test_the_folder_says_whose_it_is_and_stays_as_it_was(folder: Path) -> None:
    enrolment.found_cluster("attic", StateFolder(folder), time.time())
    before = {path: path.read_bytes() for path in folder.iterdir()}
    finding = found(around(folder).state_folder)
    assert (finding.state, finding.words) == ("ok", f"{folder}, master of 'attic'")
    (folder / "authority.pem").unlink()
    assert found(around(folder).state_folder).words.endswith(", node of 'attic'")
    assert {path: path.read_bytes() for path in folder.iterdir()}.items() <= before.items()


def test_a_node_that_runs_is_named(folder: Path) -> None:
    run_file.write(folder, RunRecord.of_this_process("http://127.0.0.1:5000", 5001, "head"))
    assert found(around(folder).state_folder).words == f"{folder}, of no cluster yet, running as process {os.getpid()}"


@pytest.mark.parametrize("name", ["credentials.json", "authority.pem", "run.json"])
def test_a_broken_file_has_failed(name: str, folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / name).write_bytes(b"garbage")
    finding = found(around(folder).state_folder)
    assert finding.state == "failed"
    assert name in finding.words and "--state-dir" in finding.hint


def test_a_certificate_that_is_over_has_failed(folder: Path) -> None:
    then = time.time() - 400 * 86400
    state, authority = StateFolder(folder), ClusterAuthority.create("attic", then)
    state.save_credentials(authority.enrol_head("tower", make_key(), then))
    finding = found(around(folder).state_folder)
    assert finding.state == "failed"
    assert "ended on" in finding.words and "Join the cluster again" in finding.hint


def test_a_folder_that_cannot_be_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_text("a file")
    assert found(around(folder).state_folder).state == "failed"
    assert "cannot be made" in found(around(folder / "below").state_folder).words

    def full(**_: Any) -> None:
        raise OSError(28, "No space left on device")

    folder.unlink()
    folder.mkdir()
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert found(around(folder).state_folder).words == f"{folder} cannot be written: No space left on device."


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_a_folder_that_others_may_read_is_a_warning(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    finding = found(around(folder).state_folder)
    assert (finding.state, finding.hint) == ("warning", f"Use: chmod 700 {folder}")


def test_a_port_is_free_and_still_free_afterwards(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    for _ in range(2):
        assert found(around(folder, port).api_port) == Finding("thing", "ok", f"{port} is free")
    assert found(around(folder, 0).api_port).words == "any free one"


def test_a_port_of_another_program_is_told_with_its_holder(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        api, node = found(around(folder, port).api_port), found(around(folder, node_port=port).peer_port)
    assert (api.state, node.state) == ("failed", "warning"), "a head must have its port, a node port moves"
    assert f"Port {port} is already in use by" in api.words and f"process {os.getpid()}" in api.words
    assert "--port" in api.hint and "--node-port" in node.hint


def test_the_ports_of_our_own_node_are_fine(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as api, socket.create_server(("127.0.0.1", 0)) as node:
        ports = api.getsockname()[1], node.getsockname()[1]
        run_file.write(folder, RunRecord.of_this_process(f"http://127.0.0.1:{ports[0]}", ports[1], "head"))
        look = around(folder, *ports)
        both = [found(look.api_port), found(look.peer_port)]
    for port, finding in zip(ports, both, strict=True):
        assert finding.state == "ok"
        assert finding.words == f"{port}, held by the head that runs here (process {os.getpid()})"


def test_a_broken_run_file_does_not_hide_the_port(folder: Path) -> None:
    folder.mkdir()
    (folder / "run.json").write_text("garbage")
    assert found(around(folder).api_port).state == "ok"


def test_multicast_is_really_tried() -> None:
    assert found(surroundings.mdns).state in ("ok", "warning")


def test_what_answers_over_multicast_is_told_and_its_lack_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    async def find(timeout_s: float) -> tuple[Peer, ...]:
        return (Peer("0" * 16, "attic", (Address("192.0.2.7", 5001),), True, 5000, "1"),)

    async def closed(timeout_s: float) -> tuple[Peer, ...]:
        raise OSError(19, "No such device")

    monkeypatch.setattr(discovery, "find", find)
    assert found(surroundings.mdns).words == "works; clusters seen: 'attic' at 192.0.2.7:5001"
    monkeypatch.setattr(discovery, "find", closed)
    finding = found(surroundings.mdns)
    assert finding.state == "warning"
    assert "No such device" in finding.words and "join HOST" in finding.hint


def test_a_machine_on_no_network_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "local_addresses", lambda port: (Address("127.0.0.1", port), Address("::1", port)))
    assert found(around(folder).addresses).state == "warning"
    monkeypatch.setattr(discovery, "local_addresses", lambda port: (Address("fe80::1%eth0", port),))
    assert found(around(folder).addresses) == Finding("thing", "ok", "fe80::1%eth0")


def test_a_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "free for models in" in found(surroundings.disk).words
    monkeypatch.setattr(surroundings, "LITTLE_DISK_BYTES", 1 << 62)
    assert found(surroundings.disk).state == "warning"


# --- model families -------------------------------------------------------------------------------------------------


def test_families_are_counted_and_a_broken_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "supported_families", lambda: ("llama", "no-such-family", "qwen3"))
    seen: list[tuple[int, int, str]] = []
    summary, broken = family_checks.examine_families(lambda *told: seen.append(told))
    assert summary.state == "failed"
    assert summary.words.startswith("2 of 3 import, in ")
    assert (broken.name, broken.state) == ("family no-such-family", "failed")
    assert seen == [(0, 3, "llama"), (1, 3, "no-such-family"), (2, 3, "qwen3"), (3, 3, "")]


def test_no_family_at_all_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "supported_families", tuple)
    (summary,) = family_checks.examine_families(lambda *_: None)
    assert summary.state == "failed"


def test_families_that_cannot_even_be_listed_have_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "supported_families", lambda: operator.truediv(1, 0))
    (summary,) = family_checks.examine_families(lambda *_: None)
    assert summary.words.startswith("ZeroDivisionError")
