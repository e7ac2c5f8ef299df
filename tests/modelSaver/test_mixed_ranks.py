"""Adapters whose narrow layers have fewer ranks than the others: every format, every tool, and diffusers itself."""

import json

from modules.model.unet_keys import unet_adapter_naming
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.convert import names_as_they_are, with_alpha, with_rank
from modules.modelSaver.effective_rank import ranks_of_file
from modules.modelSaver.fused_layers import join_layers, split_layer
from modules.modelSaver.save_adapter import save_adapter, save_parts, writable_formats
from modules.module.AdapterSet import AdapterSet
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.LayerFilter import LayerFilter
from modules.util.UserError import UserError
from tests.adapters import disturb

import torch

import pytest
from safetensors import safe_open

RANK, ALPHA = 16, 12.0
SIZE = {"lora_rank": RANK, "lora_alpha": ALPHA, "lora_init": "ORTHONORMAL"}
KINDS = {
    "LoRA": SIZE,
    "DoRA": SIZE | {"lora_decompose": True},
    "DoRA on outputs": SIZE | {"lora_decompose": True, "lora_decompose_output_axis": True},
}
# the last layer has four outputs, the first as many inputs
LAYERS = LayerFilter(("conv_in", "conv_out", "attn1"))
DESCRIPTION = AdapterDescription(title="mixed")


class Mixed:
    """A pipeline with adapters of which the last layer's is narrow, as after a training."""

    def __init__(self, make_pipeline, kind: str) -> None:
        self.pipeline = make_pipeline()
        self.unet = self.pipeline.unet
        self.naming = unet_adapter_naming(self.unet, {"text_encoder": self.pipeline.text_encoder})
        self.adapters = disturb(AdapterSet("unet", self.unet, TrainConfig.from_dict(KINDS[kind]), LAYERS, 3), 1)

    def deltas(self) -> dict[str, torch.Tensor]:
        return {name: adapter.merged_delta() for name, adapter in self.adapters.adapters.items()}

    def deltas_of(self, path) -> dict[str, torch.Tensor]:
        file = read_adapter(path)
        again = AdapterSet.from_parts("unet", self.unet, file.fit(self.naming, {"unet": self.unet})["unet"])
        return {name: adapter.merged_delta() for name, adapter in again.adapters.items()}


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    """`tolerance`: of roundings to float32, against the largest entry of a layer."""
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        assert (found[name] - delta).abs().max() <= tolerance * delta.abs().max(), name


@pytest.fixture(params=KINDS)
def mixed(make_pipeline, request) -> Mixed:
    made = Mixed(make_pipeline, request.param)
    assert made.adapters.adapters["conv_out"].rank == 4 and made.adapters.adapters["conv_in"].rank == RANK
    return made


def test_every_format_holds_them(mixed, tmp_path):
    formats = writable_formats(mixed.naming)
    written = 0
    for model_format in formats:
        path = tmp_path / f"{model_format}.safetensors"
        try:
            save_adapter(path, {"unet": mixed.adapters}, model_format, mixed.naming, DESCRIPTION)
        except UserError as error:
            assert "DIFFUSERS_LORA cannot hold" in str(error)
            continue
        close(mixed.deltas_of(path), mixed.deltas(), 1e-5)  # of DoRA's magnitude several roundings
        written += 1
    assert written >= len(formats) - 1 >= 4


@pytest.mark.parametrize("model_format", [ModelFormat.KOHYA_LORA, ModelFormat.DIFFUSERS_LORA])
def test_diffusers_loads_them(make_pipeline, predict, tmp_path, model_format):
    """By the rank and alpha of each layer."""
    made = Mixed(make_pipeline, "LoRA")
    made.adapters.hook()
    expected = predict(made.pipeline)[0]
    made.adapters.unhook()
    plain = predict(made.pipeline)[0]
    save_adapter(tmp_path / "lora.safetensors", {"unet": made.adapters}, model_format, made.naming, DESCRIPTION)
    made.pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    found = predict(made.pipeline)[0]
    # sums in float32 in another order, over some tens of layers
    assert (found - expected).abs().max() < 1e-4 and (plain - expected).abs().max() > 0.05
    assert made.unet.conv_out.lora_A["default_0"].weight.shape[0] == 4


def test_the_file_says_that_there_are_several(mixed, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_adapter(path, {"unet": mixed.adapters}, ModelFormat.KOHYA_LORA, mixed.naming, DESCRIPTION)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == str(RANK) and metadata["ss_network_alpha"] == f"{ALPHA:g}"
    assert json.loads(metadata["ss_network_args"])["conv_dim"] == "Dynamic"


def test_the_tools_work_on_them(mixed, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_adapter(path, {"unet": mixed.adapters}, ModelFormat.KOHYA_LORA, mixed.naming, DESCRIPTION)
    file = read_adapter(path)
    ranks = ranks_of_file(file).layers
    assert ranks["lora_unet_conv_out"].rank == 4 and 1 < ranks["lora_unet_conv_out"].up <= 4
    assert ranks["lora_unet_conv_in"].rank == RANK
    components, naming = names_as_they_are(file)
    save_parts(tmp_path / "alpha.safetensors", with_alpha(components, 3.0), file.format, naming, DESCRIPTION)
    close(mixed.deltas_of(tmp_path / "alpha.safetensors"), mixed.deltas(), 1e-5)  # a root of the ratio of the alphas
    smaller, loss = with_rank(components, 8)
    save_parts(tmp_path / "rank.safetensors", smaller, file.format, naming, DESCRIPTION, DataType.FLOAT_32)
    again = read_adapter(tmp_path / "rank.safetensors").layers
    assert {name: len(parts["lora_down.weight"]) for name, parts in again.items()} == {
        name: min(8, len(parts["lora_down.weight"])) for name, parts in file.layers.items()
    }
    assert loss.worst_layer and loss.worst_layer.startswith("lora_unet_")


def test_messages_about_a_file_s_layers_use_its_own_names(tmp_path):
    """They belong to no component of a model."""
    layer = {"lora_down.weight": torch.zeros(2, 8), "lora_up.weight": torch.zeros(4, 2)}
    rotation = {"oft_R.weight": torch.zeros(2, 6)}
    _, naming = names_as_they_are(Named({"lora_unet_a": layer, "lora_unet_b": rotation}))
    with pytest.raises(UserError, match=r"found LoRA in lora_unet_a and OFT in lora_unet_b\."):
        save_parts(tmp_path / "x", {"": {"lora_unet_a": layer, "lora_unet_b": rotation}}, ModelFormat.KOHYA_LORA,
                   naming, DESCRIPTION)  # fmt: skip


class Named:
    """As much of a file as `names_as_they_are` reads."""

    def __init__(self, layers: dict) -> None:
        self.layers, self.format = layers, ModelFormat.KOHYA_LORA


@pytest.mark.parametrize("joined", ["lora_up.weight", "hada_w1_a"])
def test_layers_of_several_ranks_are_joined_and_taken_apart(joined):
    """As q, k and v of Flux.2, with the ranks and scales of each."""
    generator = torch.Generator().manual_seed(0)

    def parts(outputs: int, rank: int, alpha: float) -> dict[str, torch.Tensor]:
        names = {"lora_up.weight": (outputs, rank), "lora_down.weight": (rank, 12)}
        if joined.startswith("hada"):
            names = {f"hada_w{n}_{side}": (outputs, rank) if side == "a" else (rank, 12) for n in "12" for side in "ab"}
        return {name: torch.randn(shape, generator=generator) for name, shape in names.items()} | {
            "alpha": torch.tensor(alpha)
        }

    rows, ranks, alphas = [4, 8, 12], [4, 8, 10], [3.0, 6.0, 10.0]
    pieces = [parts(*sizes) for sizes in zip(rows, ranks, alphas, strict=True)]
    fused = join_layers(pieces, rows)
    assert fused[joined].shape == (24, 22)
    again = split_layer(fused, rows)
    assert [piece[joined].shape for piece in again] == [(4, 4), (8, 8), (12, 10)]
    layers = {f"to_{name}": torch.nn.Linear(12, size) for name, size in zip("qkv", rows, strict=True)}
    root = torch.nn.ModuleDict(layers)
    deltas = [
        {name: adapter.merged_delta() for name, adapter in AdapterSet.from_parts(
            "transformer", root, dict(zip(layers, found, strict=True))).adapters.items()}
        for found in (pieces, again)
    ]  # fmt: skip
    close(deltas[1], deltas[0])
    # a layer without an adapter gets none back; one that was never trained is as it was
    alone = split_layer(join_layers([pieces[0], None, None], rows), rows)
    assert alone[0][joined].shape == (4, 4) and alone[1:] == [None, None]
    zeros = {name: torch.zeros_like(part) for name, part in fused.items() if name != "alpha"}
    fresh = split_layer(zeros | {"alpha": fused["alpha"]}, rows)
    assert [piece[joined].shape for piece in fresh] == [(4, 22), (8, 22), (12, 22)]
