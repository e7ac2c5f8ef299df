import json

from benchmarks.adapters.contest import CASES, SMALL, contestants, equal_rank, measure, ratio, table
from benchmarks.adapters.textbook import attach_dora, attach_oft
from modules.module.AdapterSet import AdapterSet
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.PeftType import PeftType
from scripts.benchmark_adapters import main

import torch
from torch import nn

import pytest

SIZE = 4


def make(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 12), nn.SiLU(), nn.Unflatten(1, (12, 1, 1)), nn.Conv2d(12, 8, 1))


@torch.no_grad()
def test_textbook_oft_is_ours():
    """The yardstick rotates as the adapters do, so that both are timed doing the same."""
    textbook, ours, x = make(), make(), torch.randn(3, 8)
    for parameter in attach_oft(textbook, SIZE):
        parameter.normal_()
    adapters = AdapterSet("unet", ours, TrainConfig(peft_type=PeftType.OFT_2, oft_block_size=SIZE))
    adapters.hook()
    weights = [layer.parametrizations.weight[0].weight for layer in (textbook[0], textbook[3])]
    for own, weight in zip(adapters.parameters(), weights, strict=True):
        own.copy_(weight)
    # float32 sums of a dozen terms
    assert torch.allclose(textbook(x), ours(x), atol=1e-5)


@torch.no_grad()
def test_textbook_dora_is_ours():
    textbook, ours, x = make(), make(), torch.randn(3, 8)
    trained = attach_dora(textbook, 3)
    config = TrainConfig(
        lora_rank=3, lora_alpha=3.0, lora_decompose=True, lora_decompose_output_axis=True,
        lora_decompose_norm_epsilon=False,
    )  # fmt: skip
    adapters = AdapterSet("unet", ours, config)
    adapters.hook()
    for index, name in enumerate(("0", "3")):
        down, up, magnitude = trained[3 * index : 3 * index + 3]
        up.normal_(), magnitude.mul_(1.5)
        own = adapters.adapters[name]
        own.down.copy_(down.view(own.down.shape)), own.up.copy_(up.view(own.up.shape))
        own.magnitude.copy_(magnitude.view(own.magnitude.shape))
    # float32 sums of a dozen terms
    assert torch.allclose(textbook(x), ours(x), atol=1e-5)


@pytest.mark.parametrize("case", [*CASES, *SMALL], ids=lambda case: case.name)
def test_ranks_give_lora_as_many_numbers_as_oft(case):
    with torch.device("meta"):
        block, _ = case.build()
    trained = {
        kind: sum(p.numel() for p in AdapterSet("unet", block, TrainConfig(**options)).parameters())
        for kind, options in {
            "lora": {"lora_rank": equal_rank(case)},
            "oft": {"peft_type": PeftType.OFT_2, "oft_block_size": case.oft_block},
        }.items()
    }
    # ranks are whole numbers; the small one's is 1
    assert 0.65 < trained["lora"] / trained["oft"] < 1.35


def test_every_contestant_takes_steps():
    row = measure(SMALL[0], rounds=2)
    assert row["contestants"].keys() == contestants(SMALL[0]).keys()
    for name, own in row["contestants"].items():
        assert own["trained"] > 0 and own["peak_bytes"] > 0 and min(own["rounds"]) > 0, name
    assert ratio(row, "oft", "lora") > 0 and ratio(row, "oft", "nobody") is None
    assert table(row).count("\n| ") == len(row["contestants"]) + 1


def test_command_writes_json(tmp_path, capsys):
    output = tmp_path / "adapters.json"
    assert main(["--small", "--threads=1", "--rounds=1", "--only", "lora", "oft", "--json", str(output)]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    assert result["cases"][0]["ratios"]["oft / lora"] > 0 and result["cases"][0]["ratios"]["dora / dora peft"] is None
    assert "oft / lora: " in capsys.readouterr().out
    assert main(["--small", "--threads=1", "--only", "nothing"]) == 1
    assert "expected one of lora, " in capsys.readouterr().err
