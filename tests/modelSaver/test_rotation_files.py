"""Rotations in files: which way they turn, and whether they are exact or the Neumann series."""

import json

from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.save_adapter import save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.util.AdapterNaming import AdapterNaming
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.PeftType import PeftType

import torch
from torch import nn

import pytest
from peft import OFTConfig, inject_adapter_in_model
from safetensors.torch import save_file

LAYERS = ("linear", "conv")
NAMING = AdapterNaming.build(
    {ModelFormat.KOHYA_LORA: {("unet", layer): f"lora_unet_{layer}" for layer in LAYERS}},
    {f"base_model.model.{layer}": ("unet", layer) for layer in LAYERS},
)


def make_root() -> nn.Module:
    torch.manual_seed(0)
    root = nn.Module()
    root.linear, root.conv = nn.Linear(12, 20), nn.Conv2d(8, 10, 1)
    return root


# without its config a file of peft's can only be taken for the default
@pytest.mark.parametrize(("neumann", "beside"), [(True, True), (True, False), (False, True)])
def test_files_of_peft_turn_as_they_do_there(tmp_path, neumann, beside):
    theirs = make_root()
    config = OFTConfig(r=0, oft_block_size=4, target_modules=list(LAYERS), use_cayley_neumann=neumann)
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
