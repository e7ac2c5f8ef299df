"""Rotations in files: which way they turn, and whether they are exact or the Neumann series."""

import json

from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.save_adapter import save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.module.kernel_layout import KERNELS
from modules.util.AdapterNaming import AdapterNaming
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.PeftType import PeftType

import torch
from torch import nn

import pytest
from peft import OFTConfig, inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import save_file

LAYERS = ("linear", "conv", "wide")
NAMING = AdapterNaming.build(
    {ModelFormat.KOHYA_LORA: {("unet", layer): f"lora_unet_{layer}" for layer in LAYERS}},
    {f"base_model.model.{layer}": ("unet", layer) for layer in LAYERS},
)


def make_root() -> nn.Module:
    torch.manual_seed(0)
    root = nn.Module()
    root.linear, root.conv, root.wide = nn.Linear(12, 20), nn.Conv2d(8, 10, 1), nn.Conv2d(4, 6, 3)
    return root


# without its config a file of peft's can only be taken for the default
@pytest.mark.parametrize(("neumann", "beside"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("share", [False, True])
def test_files_of_peft_turn_as_they_do_there(tmp_path, neumann, beside, share):
    theirs = make_root()
    config = OFTConfig(
        r=0, oft_block_size=4, target_modules=list(LAYERS), use_cayley_neumann=neumann, block_share=share
    )
    inject_adapter_in_model(config, theirs)
    tensors = {}
    for layer in LAYERS:
        weight = getattr(theirs, layer).oft_R["default"].weight
        nn.init.normal_(weight, std=0.1)
        tensors[f"base_model.model.{layer}.oft_R.weight"] = weight.detach().clone()
        getattr(theirs, layer).merge()
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    if beside:
        settings = {"peft_type": "OFT", "use_cayley_neumann": neumann}
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")

    ours, plain = make_root(), make_root()
    file = read_adapter(tmp_path / "adapter_model.safetensors")
    assert file.neumann == neumann
    AdapterSet.from_parts("unet", ours, file.fit(NAMING, {"unet": ours})["unet"], file.neumann).merge()
    for layer in LAYERS:
        expected = getattr(theirs, layer).get_base_layer().weight
        # float32, in another order
        assert torch.allclose(getattr(ours, layer).weight, expected, atol=1e-5)
        assert not torch.allclose(getattr(plain, layer).weight, expected, atol=1e-2)


@pytest.mark.parametrize("neumann", [True, False])
@pytest.mark.parametrize("side", ["INPUT", "OUTPUT"])
def test_files_of_ours_say_how_their_rotations_are_computed(tmp_path, neumann, side):
    root = make_root()
    config = TrainConfig(
        peft_type=PeftType.OFT_2, oft_block_size=4, oft_side=side, oft_cayley_neumann=neumann, oft_scaled=True
    )
    adapters = AdapterSet("unet", root, config)
    for parameter in adapters.parameters():
        nn.init.normal_(parameter)
    description = AdapterDescription(neumann=config.oft_cayley_neumann)
    save_adapter(tmp_path / "oft.safetensors", {"unet": adapters}, ModelFormat.KOHYA_LORA, NAMING, description)
    file = read_adapter(tmp_path / "oft.safetensors")
    assert file.neumann is neumann
    parts = file.fit(NAMING, {"unet": root})["unet"]
    for layer, own in AdapterSet.from_parts("unet", root, parts, file.neumann).adapters.items():
        assert torch.allclose(own.merged_delta(), adapters.adapters[layer].merged_delta(), atol=1e-6)
    other = AdapterSet.from_parts("unet", root, parts, not file.neumann).adapters["linear"].merged_delta()
    # weights of 1/√6 turn far enough that the series is another matrix
    assert not torch.allclose(other, adapters.adapters["linear"].merged_delta(), atol=1e-2)


def test_other_kinds_and_foreign_files_do_not_say(tmp_path):
    root = make_root()
    for name, config in (("lora", TrainConfig(lora_rank=2)), ("oft", TrainConfig(peft_type=PeftType.OFT_2))):
        path = tmp_path / f"{name}.safetensors"
        adapters = {"unet": AdapterSet("unet", root, config)}
        save_adapter(path, adapters, ModelFormat.KOHYA_LORA, NAMING, AdapterDescription())
        assert read_adapter(path).neumann is None


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("dora", [True, False])
def test_files_of_ours_say_what_they_rotate_in_convolutions(tmp_path, kernels, share, dora):
    root, path = make_root(), tmp_path / "oft.safetensors"
    config = TrainConfig(
        peft_type=PeftType.OFT_2, oft_block_size=4, oft_kernels=kernels, oft_block_share=share, lora_decompose=dora
    )
    adapters = AdapterSet("unet", root, config)
    for name, parameter in adapters.named_parameters():
        if name.endswith(".weight"):
            nn.init.normal_(parameter, std=0.2)
    description = AdapterDescription(neumann=False, kernels=False)
    save_adapter(path, {"unet": adapters}, ModelFormat.KOHYA_LORA, NAMING, description)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["oft_kernels"] == str(kernels)
        rows = file.get_slice("lora_unet_wide.oft_R.weight").get_shape()[0]
    assert rows == (1 if share or not kernels else 9)
    warnings = []
    parts = read_adapter(path).fit(NAMING, {"unet": root}, warnings.append)["unet"]
    assert [name for name, tensors in parts.items() if KERNELS in tensors] == (["wide"] if kernels else [])
    for layer, own in AdapterSet.from_parts("unet", root, parts).adapters.items():
        assert torch.allclose(own.merged_delta(), adapters.adapters[layer].merged_delta(), atol=1e-6)  # float32
    assert not warnings


@pytest.mark.parametrize(
    ("more", "header", "expected"),
    [
        ({}, {}, None),
        ({}, {"ot_branch": "master"}, True),
        ({}, {"ot_config": "{}", "oft_kernels": "False"}, False),
        ({"scaled_oft": torch.tensor(1.0)}, {"format": "pt"}, True),
        ({"scaled_oft": torch.tensor(True)}, {"oft_kernels": "False"}, False),
    ],
)
def test_who_made_a_file_tells_what_a_shared_block_rotates(tmp_path, more, header, expected):
    path = tmp_path / "x.safetensors"
    save_file({"lora_unet_wide.oft_R.weight": torch.full((1, 6), 0.1)} | {
        f"lora_unet_wide.oft_R.{part}": tensor for part, tensor in more.items()
    }, path, header)  # fmt: skip
    file, warnings, root = read_adapter(path), [], make_root()
    assert file.kernels is expected
    parts = file.fit(NAMING, {"unet": root}, warnings.append)["unet"]["wide"]
    assert (KERNELS in parts) == bool(expected)
    assert [" (1 layers, for example lora_unet_wide). Input channels are assumed" in line for line in warnings] == (
        [True] if expected is None else []
    )
