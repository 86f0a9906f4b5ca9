from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from vramancer_cli.engine.read_progress import ReadProgress
from vramancer_cli.engine.stored_tensor import StoredTensor


def tensors(folder: Path, *sizes: int) -> list[StoredTensor]:
    path = folder / "weights"
    path.write_bytes(bytes(sum(sizes)))
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    places = zip(starts, sizes, strict=True)
    return [StoredTensor(str(n), path, torch.uint8, (size,), start, size) for n, (start, size) in enumerate(places)]


def test_each_tensor_counts_with_its_bytes_when_it_is_read(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    reading = ReadProgress(60, lambda *counts: seen.append(counts))
    counted = [reading.counted(tensor) for tensor in tensors(tmp_path, 10, 20, 30)]
    assert seen == [(0, 60)]
    for tensor in counted[:2]:
        assert tensor[...].numel() == tensor.size_bytes
    assert seen == [(0, 60), (10, 60), (30, 60)]
    assert counted[2].read_as(torch.float32)[...].sum() == 0
    reading.end()
    assert seen[3:] == [(60, 60)]


def test_thousands_of_small_ones_are_told_together(tmp_path: Path):
    seen: list[int] = []
    reading = ReadProgress(5000, lambda read, _total: seen.append(read))
    for tensor in tensors(tmp_path, *[1] * 5000):
        reading.counted(tensor)[...]
    reading.end()
    assert len(seen) <= 202
    assert seen[-1] == 5000 and seen == sorted(set(seen))


def test_what_several_threads_read_adds_up(tmp_path: Path):
    seen: list[int] = []
    reading = ReadProgress(4000, lambda read, _total: seen.append(read))
    counted = [reading.counted(tensor) for tensor in tensors(tmp_path, *[10] * 400)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda tensor: tensor[...], counted))
    reading.end()
    assert seen == sorted(set(seen)) and seen[-1] == 4000


def test_counting_changes_nothing_else_about_a_tensor(tmp_path: Path):
    (tensor,) = tensors(tmp_path, 8)
    counted = ReadProgress(8, lambda *_: None).counted(tensor)
    assert counted == tensor and repr(counted) == repr(tensor)
