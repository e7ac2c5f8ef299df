"""What `scaled_optim.describe` finds in plain torch models, peft's and kohya's adapters, and our own."""

from collections.abc import Mapping
from typing import Any

import scaled_optim
from modules.module.LoRAModule import LoRAModule
from scaled_optim.batching import members_of, partners_of

import torch
from torch import nn

import pytest
from diffusers import UNet2DConditionModel
from peft import LoraConfig, OFTConfig, get_peft_model


class Small(nn.Module):
    """A table, three layers and a norm; the last layer shares nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 16)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.table(x)
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(16, 16)
        self.gain = nn.Parameter(torch.ones(1, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gain * self.q(x)


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
    )  # fmt: skip


def facts(found: Mapping[Any, Any]) -> dict[str, tuple[str, str | None]]:
    return {info.name: (info.role, info.pair) for info in found.values()}


def pairs(found: Any, parameters: list[nn.Parameter]) -> dict[str, str]:
    """Which factors the engine steps together, by name."""
    members = members_of([{"params": parameters}], found)
    return {one.name: other.name for one, other in partners_of(members).items()}


def test_a_plain_model():
    found = facts(scaled_optim.describe(Small()))
    assert found == {
        "table.weight": ("INPUT", None),
        **{
            f"blocks.{k}.{name}": (role, None)
            for k in range(2)
            for name, role in (("q.weight", "HIDDEN"), ("q.bias", "VECTOR"), ("gain", "VECTOR"))
        },
        "norm.weight": ("VECTOR", None),
        "norm.bias": ("VECTOR", None),
        "out.weight": ("OUTPUT", None),
        "out.bias": ("VECTOR", None),
    }


def test_first_and_last_layers_of_a_sequence():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    found = list(scaled_optim.describe(model).values())[::2]
    assert [(info.role, info.matrix) for info in found] == [("INPUT", True), ("HIDDEN", False), ("OUTPUT", False)]


def test_ends_that_are_all_named_are_not_guessed():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    found = list(scaled_optim.describe(model, input_layers=["1"], output_layers=[], guess_ends=False).values())[::2]
    assert [info.role for info in found] == ["HIDDEN", "INPUT", "HIDDEN"]


def test_layers_of_repeated_blocks_are_hidden_even_at_the_ends():
    found = facts(scaled_optim.describe(nn.ModuleList([Block(), Block(), Block()])))
    assert {role for name, (role, _) in found.items() if name.endswith("q.weight")} == {"HIDDEN"}


def test_a_shared_table_counts_once():
    model = nn.Module()
    model.table, model.head = nn.Embedding(10, 16), nn.Linear(16, 10, bias=False)
    model.head.weight = model.table.weight
    assert facts(scaled_optim.describe(model)) == {"table.weight": ("INPUT", None)}


def test_a_whole_unet_has_the_first_and_last_layers_that_the_trainer_names():
    found = facts(scaled_optim.describe(unet()))
    ends = {name: role for name, (role, _) in found.items() if role in ("INPUT", "OUTPUT")}
    assert ends == {
        "conv_in.weight": "INPUT",
        "time_embedding.linear_1.weight": "INPUT",
        "conv_out.weight": "OUTPUT",
    }


@pytest.mark.parametrize("wrapped", [False, True])
def test_lora_and_dora_of_peft(wrapped):
    model = get_peft_model(Small(), LoraConfig(r=4, target_modules=["q", "table", "out"], use_dora=True))
    if wrapped:
        model = nn.ModuleDict({"module": model})
    found = scaled_optim.describe(model)
    trained = [p for p in found if p.requires_grad]
    roles = {found[p].name: found[p].role for p in trained}
    assert set(roles.values()) == {"LORA_DOWN", "LORA_UP", "DORA_SCALE"}
    for name, role in roles.items():
        expected = {
            "lora_A": "LORA_DOWN", "lora_embedding_A": "LORA_DOWN", "lora_B": "LORA_UP", "lora_embedding_B": "LORA_UP",
            "lora_magnitude_vector": "DORA_SCALE",
        }  # fmt: skip
        part = next(part for part in expected if f".{part}." in name)
        assert role == expected[part], name
    # every factor has found its partner: two linear layers in blocks, the table and the last layer
    assert len(pairs(found, trained)) == 2 * 4


def test_biases_of_adapters_are_vectors():
    model = get_peft_model(Small(), LoraConfig(r=4, target_modules=["q"], lora_bias=True))
    found = {name: role for name, (role, _) in facts(scaled_optim.describe(model)).items() if "lora_B" in name}
    assert found == {
        f"base_model.model.blocks.{k}.q.lora_B.default.{leaf}": role
        for k in range(2)
        for leaf, role in (("weight", "LORA_UP"), ("bias", "VECTOR"))
    }


def test_two_adapters_of_peft_do_not_mix():
    model = get_peft_model(Small(), LoraConfig(r=4, target_modules=["q"]))
    model.add_adapter("second", LoraConfig(r=4, target_modules=["q"]))
    found = scaled_optim.describe(model)
    factors = [p for p in found if found[p].role in ("LORA_DOWN", "LORA_UP")]
    matched = pairs(found, factors)
    assert len(matched) == 8
    assert all(("second" in one) == ("second" in other) for one, other in matched.items())


def test_oft_of_peft():
    model = get_peft_model(Small(), OFTConfig(r=0, oft_block_size=4, target_modules=["q"]))
    found = scaled_optim.describe(model)
    trained = {found[p].name: (found[p].role, tuple(p.shape)) for p in found if p.requires_grad}
    # a row for each block, the upper triangle of a skew 4 × 4 matrix, as the role OFT expects
    assert trained == {f"base_model.model.blocks.{k}.q.oft_R.default.weight": ("OFT", (4, 6)) for k in range(2)}


def test_a_diffusers_model_with_a_peft_adapter_has_the_roles_and_pairs_of_ours():
    theirs, ours = unet(), unet()
    targets = ["to_q", "to_k", "conv1"]
    theirs.requires_grad_(False).add_adapter(LoraConfig(r=4, target_modules=targets))
    found = scaled_optim.describe(theirs)
    trained = [p for p in found if p.requires_grad]
    adapters = [
        LoRAModule(layer, "unet", name, rank=4, alpha=4.0)
        for name, layer in ours.named_modules()
        if name.rpartition(".")[2] in targets
    ]
    own = [p for adapter in adapters for p in adapter.parameters()]

    def told(describe: Any, parameters: list[nn.Parameter]) -> list[tuple]:
        shapes = {describe(p).name: tuple(p.shape) for p in parameters}
        matched = pairs(describe, parameters)
        return sorted((str(describe(p).role), tuple(p.shape), shapes[matched[describe(p).name]]) for p in parameters)

    assert trained and told(found, trained) == told(lambda p: p.parameter_info, own)


class KohyaModule(nn.Module):
    """A LoRA as kohya's networks hold it, with the attributes that its checkpoints show."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_down, self.lora_up = nn.Linear(16, 4, bias=False), nn.Linear(4, 16, bias=False)
        self.dora_scale = nn.Parameter(torch.ones(16, 1))


def test_a_network_of_kohya():
    network = nn.Module()
    for name in ("lora_unet_mid_block_to_q", "lora_unet_mid_block_to_k"):
        network.add_module(name, KohyaModule())
    found = scaled_optim.describe(network)
    assert {info.role for info in found.values()} == {"LORA_DOWN", "LORA_UP", "DORA_SCALE"}
    assert len(pairs(found, list(found))) == 4


def test_what_a_parameter_says_of_itself_comes_first():
    model = Small()
    model.out.weight.parameter_info = scaled_optim.Description("HIDDEN", "own name")
    assert scaled_optim.describe(model)[model.out.weight].name == "own name"


def test_groups_hold_what_is_trained_and_the_parameters_know_what_they_are():
    model = get_peft_model(Small(), LoraConfig(r=4, target_modules=["q"]))
    (group,) = scaled_optim.param_groups(model, lr=0.5)
    assert len(group["params"]) == 4 and group["lr"] == 0.5
    assert all(name.endswith(("lora_A.default.weight", "lora_B.default.weight")) for name in group["param_names"])
    # a program may hand on the parameters alone
    optimizer = scaled_optim.BatchedOptimizer(group["params"], "STIEFEL_LORA", 0.1)
    assert len(pairs(optimizer.describe, group["params"])) == 4
    with pytest.raises(ValueError, match="^param_groups: found no parameter that requires gradients"):
        scaled_optim.param_groups(Small().requires_grad_(False))
