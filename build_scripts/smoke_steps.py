"""The first half of the smoke test: two machines become a cluster, answer, and end with Ctrl-C.

Needs nothing but the file under test: no torch, none of our rooms.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from typing import Any, Final

from build_scripts.frozen_program import START_DEADLINE_S, UNPACKING, answers, ask, free_ports, wait_ready
from build_scripts.leftovers import strangers
from build_scripts.pseudo_terminal import Terminal, plain
from build_scripts.smoke_scene import (
    ANY_PORTS,
    END_S,
    START,
    Scene,
    StepError,
    card_of,
    expect,
    expect_no_halves,
    expect_nothing_left,
    expect_refusal,
    wait_for,
)

QUESTION: Final = "How do I add a second machine?"
MEMORY: Final = "24MiB"
"""Of each node: too little for the whole built-in model, so that both hold a part."""
THREADS: Final = str(max(1, (os.cpu_count() or 1) // 2))
"""Of each node: in truth they are one machine, and threads that wait for a core wait by turning."""
VERBS: Final = ("start", "join", "stop", "invite", "nodes", "status", "chat", "config", "doctor", "cache")
VERSION: Final = re.compile(r"vramancer \d+\.\d+\S*, build \S+, torch \d+\.\d+\S*, Python \d+\.\d+\S*, \S+ \S+")
DOCTOR_S: Final = 180.0


def helps(scene: Scene) -> str:
    ran = scene.desk.run("--help")
    expect(ran.code == 0 and not ran.err, f"exit code {ran.code}")
    missing = [verb for verb in VERBS if not re.search(rf"\b{verb}\b", ran.out)]
    expect(not missing, f"it does not name {', '.join(missing)}")
    return f"{ran.elapsed_s:.2f} s"


def tells_its_version(scene: Scene) -> str:
    ran = scene.desk.run("--version")
    expect(ran.code == 0, f"exit code {ran.code}")
    named = VERSION.fullmatch(ran.out.strip()) is not None
    expect(named, "it does not name version, build, torch, Python and platform")
    return ran.out.strip()


def misses_the_daemon(scene: Scene) -> str:
    """Asked at a free port: at the usual one, somebody's VRAMancer may answer."""
    ran = scene.desk.run("status", "--url", f"http://127.0.0.1:{free_ports(1)[0]}")
    line = expect_refusal(ran.code, ran.err, wanted_code=3)
    expect(not ran.out, "it wrote to stdout")
    expect("vramancer start" in line, "it does not say how to start one")
    return f"{ran.elapsed_s:.2f} s"


def shows_settings_and_cache(scene: Scene) -> str:
    """And none of the small verbs so far has unpacked or left anything."""
    settings = scene.desk.run("config")
    expect(settings.code == 0 and re.search(r"^port\s+5000\b", settings.out, re.MULTILINE) is not None, "no port 5000")
    cached = scene.desk.run("cache", "--json")
    expect(cached.code == 0 and cached.json()["runtimes"] == [], "the cache is not empty")
    expect(cached.json()["folder"] == str(scene.desk.cache), f"the cache is not {scene.desk.cache}")
    expect(not strangers(scene.desk.home, ()), f"left in HOME: {strangers(scene.desk.home, ())}")
    expect_nothing_left(scene.desk)
    return ""


def starts_a_master(scene: Scene) -> str:
    name = f"smoke-{secrets.token_hex(3)}"  # others may run a cluster on this network
    arguments = (*START, "--name", name, "--memory", MEMORY)
    scene.head = scene.stack.enter_context(scene.desk.terminal(*arguments, OMP_NUM_THREADS=THREADS))
    scene.head.see(UNPACKING, START_DEADLINE_S)
    card = card_of(scene.head, START_DEADLINE_S)
    scene.api_url = _found(r"answers at (http://\S+)", card)
    scene.code = _found(r"--auto-discover --code (\S+)", card)
    expect(answers(f"{scene.api_url}/live"), "the card is there, but the API does not answer")
    return f"{scene.api_url}, code {scene.code}"


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise StepError(f"the card has no '{pattern}'")
    return found[1]


def unpacked_once(scene: Scene) -> str:
    cached = scene.desk.run("cache", "--json").json()["runtimes"]
    expect([runtime["current"] and runtime["in_use"] for runtime in cached] == [True], "not one runtime in use")
    name = cached[0]["name"]
    expect(re.fullmatch(r"runtime-[0-9a-f]{16}", name) is not None, f"it is called {name}")
    mode = (scene.desk.cache / name).stat().st_mode & 0o777
    expect(mode == 0o700, f"its mode is {mode:o}")
    expect_no_halves(scene.desk)
    return f"{name}, {cached[0]['size_bytes'] / 1e6:.0f} MB"


def second_machine_joins(scene: Scene) -> str:
    name = _nodes(scene.status())[0]
    joining = ("join", "--auto-discover", "--code", scene.code, *ANY_PORTS, "--name", "attic", "--memory", MEMORY)
    scene.worker = scene.stack.enter_context(scene.attic.terminal(*joining, OMP_NUM_THREADS=THREADS))
    _find_cluster(scene.worker, name)
    scene.worker.see("This machine is part of", START_DEADLINE_S)
    return f"found '{name}' by mDNS"


def _find_cluster(joining: Terminal, name: str) -> None:
    """Answers the question which cluster it is, where others run here too."""
    seen = plain(joining.see_one_of(("Which one?", "Joining '", "error: "), START_DEADLINE_S))
    if seen.endswith("Which one?"):
        joining.type(_found(rf"(\d+)  '{re.escape(name)}' at", seen) + "\n")
    elif seen.endswith("error: "):
        joining.read(0.5)
        raise StepError(f"joining failed, maybe mDNS is impossible on this machine: {plain(joining.screen).strip()}")
    joining.see("Joined '")


def both_are_ready(scene: Scene) -> str:
    wait_for(lambda: _is_ready(scene.status()), "the cluster of two was not ready", START_DEADLINE_S)
    assert scene.head is not None
    wait_ready(scene.head, scene.api_url)
    layers = [node["layers"] for node in scene.status()["nodes"]]
    return f"layers {layers}"


def _is_ready(status: dict[str, Any]) -> bool:
    return status["state"] == "ready" and [bool(node["layers"]) for node in status["nodes"]] == [True, True]


def answers_a_question(scene: Scene) -> str:
    ran = scene.desk.run("chat", "--temperature", "0", QUESTION)
    expect(ran.code == 0, f"exit code {ran.code}")
    expect("vramancer join" in ran.out, "the answer does not name 'vramancer join'")
    counts = {node["name"]: node["layer_tokens"] for node in scene.status()["nodes"]}
    expect(all(counts.values()), f"not every node computed: {counts}")
    return f"(layer, token) pairs {counts}"


def shows_both_nodes(scene: Scene) -> str:
    names = _nodes(scene.status())
    expect(len(names) == 2 and names[1] == "attic", f"the nodes are {names}")
    for verb in ("nodes", "status"):
        ran = scene.desk.run(verb)
        expect(ran.code == 0 and all(name in ran.out for name in names), f"'{verb}' does not name both")
    from_attic = scene.attic.run("status", "--json")
    expect(from_attic.code == 0 and _nodes(from_attic.json()) == names, "the worker's status names others")
    return ""


def _nodes(status: dict[str, Any]) -> list[str]:
    return [str(node["name"]) for node in status["nodes"]]


def invites(scene: Scene) -> str:
    ran = scene.desk.run("invite")
    expect(ran.code == 0 and re.fullmatch(r"\d+(-[a-z]+)+\n", ran.out) is not None, "it is no pairing code")
    return ran.out.strip()


def serves_the_page(scene: Scene) -> str:
    kind, text = ask(f"{scene.api_url}/")
    expect(kind.startswith("text/html") and "</html>" in text, f"'/' is {kind}")
    return f"{len(text)} characters"


def streams(scene: Scene) -> str:
    model = json.loads(ask(f"{scene.api_url}/v1/models")[1])["data"][0]["id"]
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "stream": True}
    kind, text = ask(f"{scene.api_url}/v1/chat/completions", body)
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    expect(kind.startswith("text/event-stream") and events[-1] == "[DONE]", "it is no whole stream")
    pieces = [json.loads(event)["choices"][0]["delta"].get("content") for event in events[:-1]]
    said = [piece for piece in pieces if piece]
    expect(len(said) > 3 and "vramancer join" in "".join(said), f"it streamed {''.join(said)!r}")
    return f"{len(said)} pieces"


def passes_its_own_examination(scene: Scene) -> str:
    """`doctor --families` in the frozen runtime: every family, every check."""
    ran = scene.attic.run("doctor", "--families", "--json", deadline_s=DOCTOR_S)
    expect(ran.code == 0, f"exit code {ran.code}")
    report = ran.json()
    expect(report["ok"] and report["frozen"], "it did not run in the frozen runtime")
    failed = [finding["name"] for finding in report["findings"] if finding["state"] == "failed"]
    families = [finding["words"] for finding in report["findings"] if finding["name"] == "model families"]
    expect(not failed and len(families) == 1, f"failed: {failed}, families: {families}")
    return f"{len(report['findings'])} checks; families: {families[0]}"


def ends_with_ctrl_c(scene: Scene) -> str:
    """First the worker, then the master."""
    codes: list[int] = []
    for opened in (scene.worker, scene.head):
        assert opened is not None
        opened.interrupt()
        codes.append(opened.end(END_S))
    expect(all(code in (0, 130) for code in codes), f"the exit codes are {codes}")
    return f"exit codes {codes}"


def leaves_nothing(scene: Scene) -> str:
    for machine in (scene.desk, scene.attic):
        expect_nothing_left(machine)
        expect_no_halves(machine)
    return ""
