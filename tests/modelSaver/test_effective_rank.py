"""Effective rank by its definition, and of every kind of adapter against an SVD of the change itself."""

import math

from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.effective_rank import effective_rank, factor_values, rank_table, ranks_of_file
from modules.module.AdapterSet import AdapterSet
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch
from torch import nn

import pytest
from safetensors.torch import save_file

RANK = 4
KINDS = {
    "lora": {},
    "dora": {"lora_decompose": True},
    "loha": {"peft_type": "LOHA"},
    "lokr": {"peft_type": "LOKR", "lokr_dim": 1},
}


def test_effective_rank():
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0
    assert 1 < effective_rank(torch.tensor([1.0, 0.1])) < 2
    # shares 3/4 and 1/4, by hand
    by_hand = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert effective_rank(torch.tensor([3.0, 1.0], dtype=torch.float64)) == pytest.approx(by_hand, rel=1e-12)
    assert effective_rank(torch.tensor([300.0, 100.0])) == pytest.approx(by_hand, rel=1e-6)  # float32


class Miniature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(12, 10), nn.Conv2d(6, 8, 3)


def adapters_of(kind: str) -> AdapterSet:
    torch.manual_seed(0)
    adapters = AdapterSet("unet", Miniature(), TrainConfig.from_dict({"lora_rank": RANK, **KINDS[kind]}))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_()
    return adapters


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_factors_tell_what_the_change_tells(kind):
    for name, adapter in adapters_of(kind).adapters.items():
        values = factor_values({part: tensor.detach() for part, tensor in adapter.parts().items()})
        whole = torch.linalg.svdvals(adapter.delta_weight().detach().double().flatten(1))
        # the change is computed in float32, and singular values that are zero there are rounding
        assert effective_rank(values) == pytest.approx(effective_rank(whole), rel=1e-4), name


def save(parts: dict[str, torch.Tensor], path) -> str:
    save_file({key: tensor.contiguous() for key, tensor in parts.items()}, path)
    return str(path)


def low_rank(layers: dict[str, tuple[torch.Tensor, torch.Tensor]], path, **more: torch.Tensor) -> str:
    parts = dict(more)
    for name, (down, up) in layers.items():
        parts |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    return save(parts, path)


def test_layers_of_a_file(tmp_path):
    up = torch.linalg.qr(torch.randn(10, RANK, generator=torch.Generator().manual_seed(0)))[0]
    down = torch.zeros(RANK, 6)
    down[0, 0] = down[1, 1] = 2.0
    kernel = torch.randn(RANK, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    point = torch.ones(8, RANK, 1, 1)
    layers = {"lora_unet_a": (down, up), "lora_unet_b": (kernel, point)}
    ranks = ranks_of_file(read_adapter(low_rank(layers, tmp_path / "x.safetensors")))
    first, second = ranks.layers["lora_unet_a"], ranks.layers["lora_unet_b"]
    # float32 factors
    assert first.rank == RANK and first.up == pytest.approx(RANK, rel=1e-6) and first.product == pytest.approx(2)
    # equal columns are one direction
    assert second.up == pytest.approx(1, abs=1e-5) and second.product == pytest.approx(1, abs=1e-5)
    assert ranks.mean("up") == pytest.approx((RANK + 1) / 2, abs=1e-5)
    found = ranks.to_json()
    assert found["mean"]["rank"] == RANK and found["layers"]["lora_unet_a"]["up"] == first.up


def test_a_table_of_two_files(tmp_path):
    def pair(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.eye(rank, 6), torch.eye(8, rank)

    one = low_rank({"lora_unet_a": pair(2), "lora_unet_b": pair(4)}, tmp_path / "one.safetensors")
    two = low_rank({"lora_unet_b": pair(3), "lora_unet_c": pair(5)}, tmp_path / "two.safetensors")
    lines = rank_table([ranks_of_file(read_adapter(path)) for path in (one, two)]).splitlines()
    cells = [line.split() for line in lines[3:]]
    assert cells[0] == ["layer", "rank", "B", "B·A", "rank", "B", "B·A"]
    assert cells[1] == ["lora_unet_a", "2", "2.00", "2.00", "–", "–", "–"]
    assert cells[2] == ["lora_unet_b", "4", "4.00", "4.00", "3", "3.00", "3.00"]
    assert cells[4] == ["mean", "of", "3", "3.00", "3.00", "3.00", "4.00", "4.00", "4.00"]
    assert len({len(line) for line in lines[3:]}) == 1, "columns stand under each other"


@pytest.mark.parametrize("kind", KINDS)
def test_every_low_rank_kind_has_one(kind, tmp_path):
    layers = adapters_of(kind).layers()
    parts = {f"lora_unet_{name}.{part}": tensor for name, own in layers.items() for part, tensor in own.items()}
    ranks = ranks_of_file(read_adapter(save(parts, tmp_path / "x.safetensors")))
    assert len(ranks.layers) == 2
    for layer in ranks.layers.values():
        assert layer.product > 1 and (layer.up is None) == (kind in ("loha", "lokr"))


def test_rotations_have_none(tmp_path):
    parts = {"lora_unet_a.oft_R.weight": torch.full((3, 6), 0.1)}
    with pytest.raises(UserError, match="depends on the base model.*--info --base"):
        ranks_of_file(read_adapter(save(parts, tmp_path / "x.safetensors")))
