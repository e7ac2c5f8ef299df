"""`scripts/effective_rank.py`: table, picture, JSON, and errors of one line."""

import json

from scripts.effective_rank import main

import torch

import pytest
from PIL import Image
from safetensors.torch import save_file


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator))[0].contiguous()


def adapter(path, rank: int = 3, prefix: str = "lora_unet_") -> str:
    generator = torch.Generator().manual_seed(rank)
    parts = {}
    for layer in "ab":
        parts[f"{prefix}{layer}.lora_down.weight"] = torch.randn(rank, 20, generator=generator)
        parts[f"{prefix}{layer}.lora_up.weight"] = orthonormal(30, rank, generator)
        parts[f"{prefix}{layer}.alpha"] = torch.tensor(float(rank))
    save_file(parts, path)
    return str(path)


def test_table_picture_and_json(tmp_path, capsys):
    files = [adapter(tmp_path / f"rank {rank}.safetensors", rank) for rank in (3, 5)]
    picture, numbers = tmp_path / "new" / "x.png", tmp_path / "other" / "x.json"
    assert main([*files, "--plot", str(picture), "--json", str(numbers)]) == 0
    printed = capsys.readouterr().out
    # orthonormal columns use every rank; two decimals
    assert "lora_unet_a     3  3.00" in printed and "mean of 2" in printed and "note" not in printed
    found = json.loads(numbers.read_text(encoding="utf-8"))["files"]
    assert [own["mean"]["rank"] for own in found] == [3, 5]
    assert [own["mean"]["up"] for own in found] == pytest.approx([3, 5], rel=1e-6)  # float32 factors
    assert all(1 < own["mean"]["product"] < own["mean"]["rank"] for own in found)
    with Image.open(picture) as image:
        pixels = set(image.convert("RGB").get_flattened_data())
    assert {(72, 120, 168), (238, 133, 74)} <= pixels, "a line in the colour of each file"


def test_layers_of_other_names_are_told(tmp_path, capsys):
    one = adapter(tmp_path / "1.safetensors")
    two = adapter(tmp_path / "2.safetensors", prefix="lora_te_")
    assert main([one, two]) == 0
    assert "no layer name in common" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["missing", "no adapter", "rotation", "target"])
def test_errors_are_one_line(kind, tmp_path, capsys):
    path, more = tmp_path / "x.safetensors", []
    if kind == "no adapter":
        path.write_bytes(b"x" * 100)
    elif kind == "rotation":
        save_file({"lora_unet_a.oft_R.weight": torch.full((3, 6), 0.1)}, path)
    elif kind == "target":
        adapter(path)
        (tmp_path / "file").touch()
        more = ["--json", str(tmp_path / "file" / "x.json")]
    assert main([str(path), *more]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and str(tmp_path) in error
