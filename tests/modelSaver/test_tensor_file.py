"""Files from anywhere that are no adapters, or odd ones: one line that names the file, and no traceback."""

import json
import os
import struct

from modules.modelSaver.AdapterFile import read_adapter
from modules.util.UserError import UserError
from tests.modelSaver.test_foreign_files import DOWN, LORA, UP, refusal, written

import torch

import pytest


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({5: torch.ones(2)}, "whose tensors have no names: found 5 (int)"),
        ({"state_dict": {(1, 2): torch.ones(2)}}, "found (1, 2) (tuple)"),
        ({"x": torch.ones(2, device="meta")}, "x is an empty tensor"),
        ({"x": torch.eye(3).to_sparse()}, "x is a sparse or nested tensor"),
        ([torch.ones(2)], "holds more than tensors"),
        (torch.ones(2), "holds more than tensors"),
    ],
)
def test_torch_files_of_other_things(tmp_path, content, words):
    torch.save(content, tmp_path / "x.pt")
    assert words in refusal(tmp_path / "x.pt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_folders_and_pipes(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert "a pipe, no file" in refusal(tmp_path / "pipe")
    assert "a folder, no file" in refusal(tmp_path / "folder")
    for name in ("missing", "folder/missing", "folder\0"):
        assert "there is no such file" in refusal(f"{tmp_path}/{name}")


def header(path, tensors: dict[str, tuple[str, list[int], int]]):
    """A safetensors file of zeros: name -> (dtype, shape, bytes), whether they fit each other or not."""
    place, entries = 0, {}
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(place))
    return path


@pytest.mark.parametrize(
    ("up", "words"),
    [
        (("F32", [10**15, 10**15], 4), "not a complete safetensors file"),
        (("F32", [10**6, 10**6], 4), "not a complete safetensors file"),
        (("F32", [0, 10**12], 0), "lora_up.weight is empty"),
        (("I64", [6, 2], 96), "torch.int64, expected floating-point numbers"),
        (("BOOL", [6, 2], 12), "torch.bool, expected floating-point numbers"),
        (("C64", [6, 2], 96), "torch.complex64, expected floating-point numbers"),
        (("F4", [6, 2], 6), "float4"),
        (("F6_E2M3", [6, 2], 9), "lora_up.weight cannot be read"),
    ],
)
def test_odd_headers(tmp_path, up, words):
    layer = "lora_unet_a"
    path = header(tmp_path / "x", {f"{layer}.lora_down.weight": ("F32", [2, 4], 32), f"{layer}.lora_up.weight": up})
    assert words in refusal(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float64])
def test_other_floating_point_numbers_are_read(tmp_path, dtype):
    file = read_adapter(written(tmp_path / "x", {part: tensor.to(dtype) for part, tensor in LORA.items()}))
    assert torch.equal(file.layers["unet.a"]["lora_up.weight"].float(), UP)


@pytest.mark.parametrize("part", ["lora_up.weight", "lora_down.weight", "lora_mid.weight", "dora_scale", "alpha"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2,), (1, 1), (2, 2), (2, 1, 1), (2, 2, 3), (1, 2, 1, 1, 1)])
def test_no_shape_of_a_part_is_a_traceback(tmp_path, part, shape):
    parts = {"lora_down.weight": DOWN, "lora_up.weight": UP, "dora_scale": torch.ones(1, 1)}
    written(tmp_path / "x", parts | {part: torch.ones(shape)})
    try:
        read_adapter(tmp_path / "x")
    except UserError as error:
        assert str(error).startswith(f"{tmp_path / 'x'}: unet.a.")
