from __future__ import annotations

import psutil
import pytest
import torch

from transport.types import DeviceFacts
from vramancer_cli.engine import devices
from vramancer_cli.engine.devices import DeviceError


def test_the_cpu_is_always_there_and_knows_its_memory_and_name():
    cpu = devices.list_devices()[-1]
    assert (cpu.kind, cpu.index, str(cpu)) == ("cpu", 0, "cpu")
    assert cpu.total_bytes == psutil.virtual_memory().total
    assert 0 < cpu.free_bytes <= cpu.total_bytes
    assert cpu.name


def test_auto_takes_the_first_of_the_list():
    assert str(devices.choose("auto")) == str(devices.list_devices()[0])
    assert devices.torch_device(devices.choose("cpu")) == torch.device("cpu")


def test_auto_is_every_gpu_and_the_cpu_only_where_there_is_none():
    gpus = [str(device) for device in devices.list_devices() if device.kind != "cpu"]
    assert [str(device) for device in devices.choose_all(["auto"])] == (gpus or ["cpu"])
    assert [str(device) for device in devices.choose_all(["auto", "cpu"])] == [*gpus, "cpu"]


def test_the_cpu_may_be_lent_more_than_once():
    assert [str(device) for device in devices.choose_all(["cpu", "cpu"])] == ["cpu", "cpu:1"]
    assert [str(device) for device in devices.choose_all(["cpu:1", "cpu:0"])] == ["cpu:1", "cpu"]
    assert devices.torch_device(devices.choose("cpu:1")) == torch.device("cpu")


@pytest.mark.parametrize("choices", [("cpu:1", "cpu:1"), ("cpu:0", "cpu:0"), ("cpu:1", "cpu")])
def test_a_device_that_is_named_twice_is_refused(choices: tuple[str, ...]):
    with pytest.raises(DeviceError, match="twice"):
        devices.choose_all(choices)


def test_each_device_has_the_limit_that_is_given_for_it():
    cpu, second = devices.choose_all(["cpu", "cpu"])
    assert devices.limits_bytes([cpu, second], [3, 4]) == [3, 4]
    assert devices.limits_bytes([cpu, second], [5]) == [5, 5]
    with pytest.raises(DeviceError, match="3 sizes are given for 2 devices"):
        devices.limits_bytes([cpu, second], [3, 4, 5])


def test_devices_in_the_machines_memory_share_what_is_free_of_it():
    cpu, mps, gpu = (DeviceFacts(kind, 0, "", 1000, 500) for kind in ("cpu", "mps", "cuda"))
    assert devices.limits_bytes([cpu, mps, gpu], []) == [175, 175, 450]
    assert devices.limits_bytes([gpu, cpu], []) == [450, 350]


@pytest.mark.parametrize("choice", ["cuda:99", "xpu:99", "mps:7", "cpu:99"])
def test_a_device_that_is_not_there_is_refused_with_what_there_is(choice: str):
    with pytest.raises(DeviceError, match=f"no device '{choice}'.*cpu"):
        devices.choose(choice)


@pytest.mark.parametrize("choice", ["", "gpu", "cuda:x", "cuda:-1", "tpu:0"])
def test_what_is_no_device_name_is_refused(choice: str):
    with pytest.raises(DeviceError, match="not a device"):
        devices.choose(choice)


def test_the_default_limit_leaves_room_for_the_rest_of_the_machine():
    assert devices.default_limit_bytes(DeviceFacts("cpu", 0, "", 1000, 500)) == 350
    assert devices.default_limit_bytes(DeviceFacts("mps", 0, "", 1000, 500)) == 350
    assert devices.default_limit_bytes(DeviceFacts("cuda", 1, "", 1000, 500)) == 450


def test_rocm_is_cuda_to_torch():
    assert devices.torch_device(DeviceFacts("rocm", 1, "", 0, 0)) == torch.device("cuda", 1)


def test_what_can_be_held_falls_with_what_others_take_and_to_nothing_with_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, total_bytes = torch.device("cpu"), 100 << 20
    free = [50 << 20]
    monkeypatch.setattr(devices, "_memory", lambda _: (total_bytes, free[0]))
    left_bytes = int(total_bytes * devices.LEFT_SHARE)
    assert devices.holdable_bytes(cpu, 10 << 20) == (60 << 20) - left_bytes
    free[0] = 0
    assert devices.holdable_bytes(cpu, 10 << 20) == (10 << 20) - left_bytes

    def gone(_: torch.device) -> tuple[int, int]:
        raise RuntimeError("CUDA error: device is lost")

    monkeypatch.setattr(devices, "_memory", gone)
    assert devices.holdable_bytes(cpu, 10 << 20) == 0
