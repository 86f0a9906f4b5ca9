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
    assert devices.choose("auto") == devices.torch_device(devices.list_devices()[0])
    assert devices.choose("cpu") == torch.device("cpu")


@pytest.mark.parametrize("choice", ["cuda:99", "xpu:99", "mps:7", "cpu:1"])
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
