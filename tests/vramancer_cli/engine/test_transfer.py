"""Copies from device to device; those between GPUs are tried where there are two, or one and the CPU."""

from __future__ import annotations

import pytest
import torch

from vramancer_cli.engine.transfer import moved

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


def test_what_is_there_already_is_not_copied():
    tensor = torch.arange(4)
    assert moved(tensor, CPU) is tensor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_to_a_gpu_and_back_through_pinned_memory():
    tensor = torch.arange(12.0).reshape(3, 4)[:, ::2]
    there = moved(tensor, GPU)
    assert there.device == GPU
    back = moved(there * 2, CPU)
    assert back.is_pinned()
    assert torch.equal(back, tensor * 2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a CUDA device, and a second one")
def test_from_gpu_to_gpu():
    tensor = torch.arange(1 << 20, device=GPU)
    assert torch.equal(moved(tensor * 3, torch.device("cuda", 1)).cpu(), (tensor * 3).cpu())
