"""What this machine can compute: its devices, several threads at once, a child process, and the built-in model.

Works through the engine. Everything heavy is imported inside a look, so that what is missing is a finding.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import threading
import time
from typing import TYPE_CHECKING, Any, Final, cast

from vramancer_cli.doctor import child
from vramancer_cli.doctor.finding import Observation, gib, surprise
from vramancer_cli.errors import VramancerError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from transport.types import DeviceFacts

THREADS: Final = 4
THREAD_S: Final = 20.0
CHILD_S: Final = 60.0
_CHILD_END_S: Final = 5.0
QUESTION: Final = "What is VRAMancer?"
_SENSE: Final = "VRAMancer"
"""What every sensible answer to QUESTION has in it."""
_ANSWER_TOKENS: Final = 12


class ComputingError(VramancerError):
    """This machine does not compute as it should."""


def devices() -> Observation:
    """Every device that torch finds multiplies right; graphics cards that torch does not see are named."""
    from vramancer_cli.engine.devices import list_devices

    found = list_devices()
    words = "; ".join(f"{device} {device.name}, {_free(device)}" for device in found)
    broken = [trouble for device in found if (trouble := _trouble(device, "float32"))]
    if broken:
        return Observation(
            f"{words}. {' '.join(broken)}", "failed", "Update the driver, or leave it out with --device."
        )
    unseen = [] if any(device.kind == "cuda" for device in found) else _driver_gpus()
    if unseen:
        seen = f"{words}. torch does not see {', '.join(unseen)}."
        return Observation(seen, "warning", "Install a build of torch for this graphics card: https://pytorch.org.")
    coarse = [trouble for device in found if (trouble := _trouble(device, "bfloat16"))]
    if coarse:
        return Observation(f"{words}. {' '.join(coarse)}", "warning", "Use --dtype float32 here.")
    return Observation(words)


def kernels() -> Observation:
    """What multiplies quantised weights on the processor: our own kernels, or torch's, which are slower."""
    from vramancer_cli.engine import native

    used = native.instruction_set()
    if used is None:
        return Observation("torch's; VRAMancer's own are not part of this installation")
    return Observation(f"VRAMancer's own, with {used}")


def _free(device: DeviceFacts) -> str:
    return f"{gib(device.free_bytes)} of {gib(device.total_bytes)} free"


def _trouble(device: DeviceFacts, dtype: str) -> str:
    from vramancer_cli.engine import trial

    try:
        trial.multiply(device, dtype)
    except VramancerError as error:
        return str(error)
    except Exception as error:  # whatever a driver raises
        return f"{device} cannot multiply {dtype}: {surprise(error)}."
    return ""


def _driver_gpus() -> list[str]:
    """The NVIDIA cards that the driver knows, whether or not torch was built for them."""
    import pynvml

    nvml = cast("Any", pynvml)
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        return [nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())]
    finally:
        nvml.nvmlShutdown()


def threads() -> Observation:
    """Several threads, each with a product of its own, all at the same moment. Raises ComputingError."""
    from vramancer_cli.engine import trial
    from vramancer_cli.engine.devices import list_devices

    cpu = list_devices()[-1]
    together = threading.Barrier(THREADS, timeout=THREAD_S)
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            together.wait()
            ended.put(trial.multiply(cpu))
        except BaseException as error:  # carried to the thread that waits
            ended.put(error)

    for _ in range(THREADS):
        threading.Thread(target=work, daemon=True).start()
    for _ in range(THREADS):
        _raise(ended)
    return Observation(f"{THREADS} compute at once")


def _raise(ended: queue.SimpleQueue[BaseException | None]) -> None:
    """The next thread's end. Raises ComputingError where it was no good one."""
    try:
        error = ended.get(timeout=THREAD_S)
    except queue.Empty:
        raise ComputingError(f"A thread did not compute within {THREAD_S:g} s.") from None
    if error is not None:
        raise ComputingError(f"A thread could not compute: {surprise(error)}.") from error


def child_process() -> Observation:
    """A fresh process of this very program runs a function of ours. In a frozen one that proves freeze_support.

    Raises ComputingError.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    question, started_s = os.urandom(16), time.monotonic()
    process = context.Process(target=child.answer, args=(theirs, question), daemon=True)
    process.start()
    theirs.close()
    try:
        answer = _answer(ours, process)
    finally:
        process.kill()
        process.join(_CHILD_END_S)
        ours.close()
    if answer != child.facts(question) | {"pid": answer.get("pid")} or answer["pid"] == os.getpid():
        raise ComputingError(f"A child process gave a wrong answer: {answer}.")
    return Observation(f"answered after {time.monotonic() - started_s:.1f} s")


def _answer(connection: Connection[Any, Any], process: BaseProcess) -> dict[str, Any]:
    if not connection.poll(CHILD_S):
        raise ComputingError(f"A child process did not answer within {CHILD_S:g} s.")
    try:
        return json.loads(connection.recv_bytes(child.ANSWER_LIMIT_BYTES))
    except EOFError:
        process.join(_CHILD_END_S)
        raise ComputingError(f"A child process ended with {process.exitcode} and no answer.") from None


def builtin_model() -> Observation:
    """The model that comes with the program: tokenizer, template, weights, and an answer. Raises ComputingError, ..."""
    from vramancer_cli.engine import trial
    from vramancer_cli.engine.devices import list_devices
    from vramancer_cli.models.catalog import BUILTIN_NAME, builtin_folder
    from vramancer_cli.serving.text import TextTools

    device = str(list_devices()[0])
    text = TextTools.load(builtin_folder())
    prompt = text.encode_chat([{"role": "user", "content": QUESTION}])
    answer = text.decode(trial.greedy_tokens(builtin_folder(), prompt, _ANSWER_TOKENS, device)).strip()
    if _SENSE not in answer:
        raise ComputingError(f"{BUILTIN_NAME} answered nonsense on {device}: '{answer}'.")
    return Observation(f"{BUILTIN_NAME} on {device}: '{answer} ...'")
