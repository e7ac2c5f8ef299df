"""How adapter files call the layers of Sana, its native files, and what diffusers makes of adapter files.

The original layout is written down here. ComfyUI does not know the model, so that there are no names for it.
"""

from functools import cache, partial

from modules.model.sana_keys import SANA_LAYOUT, sana_adapter_naming
from modules.model.SanaModel import SanaModel
from modules.model.StandardSource import StandardSource
from modules.model.unet_keys import layer_paths
from modules.modelSaver.adapter_layout import split_key
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.convert import find_reference
from modules.modelSaver.save_adapter import encode_adapter, save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.LayerFilter import LayerFilter
from modules.util.ReferenceModel import ReferenceModel
from modules.util.UserError import UserError
from tests.adapters import disturb
from tests.model.key_checks import ADAPTER_KINDS, comes_back, diffusers_computes_the_same, filter_selects
from tests.model.test_flux1_keys import spelled
from tests.model.test_flux2_files import same, write
from tests.model.test_sana_model import load

import torch
from torch import Tensor, nn

import pytest
from diffusers.loaders.single_file_utils import convert_sana_transformer_to_diffusers
from safetensors.torch import save_file

# as in OneTrainer
SPELLINGS = {
    ModelFormat.KOHYA_LORA: "lora_unet_",
    ModelFormat.SAFETENSORS: "lora_unet_",
    ModelFormat.ORIGINAL_LORA: "",
    ModelFormat.DIFFUSERS_LORA: "transformer.",
    ModelFormat.LEGACY_LORA: "lora_transformer_",
    ModelFormat.INTERNAL: "transformer.",
}
OUTSIDE = {
    "x_embedder.proj": ["patch_embed.proj"],
    "t_embedder.mlp.0": ["time_embed.emb.timestep_embedder.linear_1"],
    "t_embedder.mlp.2": ["time_embed.emb.timestep_embedder.linear_2"],
    "t_block.1": ["time_embed.linear"],
    "y_embedder.y_proj.fc1": ["caption_projection.linear_1"],
    "y_embedder.y_proj.fc2": ["caption_projection.linear_2"],
    "attention_y_norm": ["caption_norm"],
    "final_layer.linear": ["proj_out"],
}
BLOCK = {
    "attn.qkv": ["attn1.to_q", "attn1.to_k", "attn1.to_v"],
    "attn.proj": ["attn1.to_out.0"],
    "cross_attn.q_linear": ["attn2.to_q"],
    "cross_attn.kv_linear": ["attn2.to_k", "attn2.to_v"],
    "cross_attn.proj": ["attn2.to_out.0"],
    "mlp.inverted_conv.conv": ["ff.conv_inverted"],
    "mlp.depth_conv.conv": ["ff.conv_depth"],
    "mlp.point_conv.conv": ["ff.conv_point"],
}


def native_tensors(transformer: nn.Module, start: str = "") -> dict[str, Tensor]:
    """The tensors of a transformer as the original code has them, with what files hold beside."""
    state, layers = dict(transformer.state_dict()), dict(OUTSIDE)
    written = {"final_layer.scale_shift_table": state.pop("scale_shift_table")}
    for i in range(len(transformer.transformer_blocks)):
        layers |= {f"blocks.{i}.{native}": [f"transformer_blocks.{i}.{path}" for path in paths]
                   for native, paths in BLOCK.items()}  # fmt: skip
        written[f"blocks.{i}.scale_shift_table"] = state.pop(f"transformer_blocks.{i}.scale_shift_table")
    for native, paths in layers.items():
        for ending in ("weight", "bias"):
            if f"{paths[0]}.{ending}" in state:
                written[f"{native}.{ending}"] = torch.cat([state.pop(f"{path}.{ending}") for path in paths])
    assert not state, list(state)
    written |= {"pos_embed": torch.ones(1, 4, 4), "y_embedder.y_embedding": torch.ones(3, 3)}
    return {start + name: tensor.clone() for name, tensor in written.items()}


@cache
def full_model() -> ReferenceModel:
    transformer = StandardSource(ModelType.SANA).empty("transformer")
    return ReferenceModel("Sana 1.6B", {"transformer": transformer}, sana_adapter_naming(transformer))


def test_all_components_are_described_as_they_were_published():
    source = StandardSource(ModelType.SANA)
    counts = {name: sum(p.numel() for p in source.empty(name).parameters()) for name in source.classes}
    # in billions they are called 1.6, 2.6 and 0.3
    assert counts == {"transformer": 1_604_462_752, "text_encoder": 2_614_341_888, "vae": 312_250_275}


def test_every_key_is_one_that_readers_know():
    """diffusers' and OneTrainer's; ComfyUI knows none."""
    model = full_model()
    paths = layer_paths(model.components["transformer"])
    # of 20 blocks eleven each, and seven outside
    assert len(paths) == 20 * 11 + 7
    assert SPELLINGS.keys() == model.naming.write.keys() and not model.naming.comfy
    for model_format, prefix in SPELLINGS.items():
        assert model.naming.written(model_format) == {spelled(prefix, path) for path in paths}
    starts = {*SPELLINGS.values(), "diffusion_model.", "base_model.model.", "lora_transformer.", "lycoris_"}
    for path in paths:
        assert all(model.naming.read[spelled(start, path)] == ("transformer", path) for start in starts)
    kernels = {path: kernel for (_, path), kernel in model.naming.kernels.items()}
    assert len(kernels) == 61 and kernels["transformer_blocks.3.ff.conv_depth"] == 9


@pytest.mark.parametrize("model_format", SPELLINGS)
def test_a_file_tells_its_model_by_its_sizes(tmp_path, full_size_models, model_format):
    transformer, parts = full_model().components["transformer"], {}
    for path in ("caption_projection.linear_1", "transformer_blocks.3.attn1.to_q"):
        layer = transformer.get_submodule(path)
        parts[path] = {"lora_down.weight": torch.ones(1, layer.in_features),
                       "lora_up.weight": torch.ones(layer.out_features, 1)}  # fmt: skip
    file = encode_adapter({"transformer": parts}, model_format, full_model().naming, DataType.FLOAT_32)
    assert {split_key(key)[0] for key in file} == {spelled(SPELLINGS[model_format], path) for path in parts}
    save_file(file, tmp_path / "x")
    assert find_reference(read_adapter(tmp_path / "x"), full_size_models).name == "Sana 1.6B"


@pytest.mark.parametrize(("name", "count"), [("full", 227), ("blocks", 220), ("attn-mlp", 220), ("attn-only", 160)])
def test_onetrainer_s_filters(name, count):
    filter_selects(SanaModel, name, full_model().components["transformer"], count)


# --- files of the components


@pytest.mark.parametrize("form", ["published", "safetensors", "diffusers"])
def test_a_transformer_in_a_file(sana_folder, sana_pipeline, tmp_path, form):
    transformer = sana_pipeline.transformer
    if form == "published":
        path = tmp_path / "Sana_1600M_1024px.pth"
        torch.save({"state_dict": native_tensors(transformer)}, path)
    else:
        native = native_tensors(transformer, "model.diffusion_model.")
        path = write(native if form == "safetensors" else dict(transformer.state_dict()), tmp_path / "x.safetensors")
    same(load(sana_folder, transformer={"model_name": str(path)}).components["transformer"], transformer)


def test_the_layout_is_the_one_that_diffusers_reads(sana_pipeline):
    state = sana_pipeline.transformer.state_dict()
    read = convert_sana_transformer_to_diffusers(native_tensors(sana_pipeline.transformer))
    assert read.keys() == state.keys() and all(torch.equal(tensor, state[name]) for name, tensor in read.items())
    full = full_model().components["transformer"]
    places = {SANA_LAYOUT.tensor(name).name for name in full.state_dict()}
    # of the last of 20 blocks and outside
    assert {"blocks.19.mlp.point_conv.conv.weight", "attention_y_norm.weight", "final_layer.linear.bias"} <= places


def test_a_vae_and_a_text_encoder_in_files(sana_folder, sana_pipeline, tmp_path):
    for component, start in (("vae", ""), ("text_encoder", ""), ("text_encoder", "model.")):
        module = getattr(sana_pipeline, component).requires_grad_(False)
        tensors = {start + name: tensor.clone() for name, tensor in module.state_dict().items()}
        path = write(tensors, tmp_path / f"{component}.safetensors")
        same(load(sana_folder, **{component: {"model_name": str(path)}}).components[component], module)


def test_files_that_are_refused(sana_folder, sana_pipeline, tmp_path):
    tensors = native_tensors(sana_pipeline.transformer)
    del tensors["blocks.1.attn.qkv.weight"]
    path = write(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"lacks 1 of the .*blocks\.1\.attn\.qkv"):
        assert load(sana_folder, transformer={"model_name": str(path)}).transformer
    path = write({"csize_embedder.mlp.0.weight": torch.ones(1)}, tmp_path / "y.safetensors")
    with pytest.raises(UserError, match="is a model of PIXART_ALPHA, but model_type is SANA"):
        assert load(sana_folder, transformer={"model_name": str(path)}).transformer


# --- adapters with numbers in them


def trained(transformer, kind: str, layers: tuple[str, ...] = ()) -> AdapterSet:
    config = TrainConfig.from_dict(ADAPTER_KINDS[kind])
    return disturb(AdapterSet("transformer", transformer, config, LayerFilter(layers)), 1)


@pytest.mark.parametrize("model_format", ["KOHYA_LORA", "DIFFUSERS_LORA", "ORIGINAL_LORA", "LEGACY_LORA", "INTERNAL"])
@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_every_kind_comes_back_from_every_format(tmp_path, sana_pipeline, kind, model_format):
    """No layers are joined, so that none is shut out."""
    transformer, path = sana_pipeline.transformer, tmp_path / "x.safetensors"
    adapters, naming = trained(transformer, kind), sana_adapter_naming(transformer)
    write_it = partial(save_adapter, path, {"transformer": adapters}, ModelFormat(model_format), naming)
    if model_format == "DIFFUSERS_LORA" and kind not in ("LoRA", "DoRA on outputs"):
        with pytest.raises(UserError, match="diffusers loads only LoRA and DoRA on outputs"):
            write_it(AdapterDescription())
        return
    write_it(AdapterDescription())
    # single channels can't be rotated
    left_out = set(layer_paths(transformer)) - adapters.adapters.keys()
    assert not left_out or ("OFT" in kind and all(path.endswith("conv_depth") for path in left_out))
    comes_back(path, naming, transformer, adapters, left_out)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["LoRA", "DoRA on outputs"])
def test_diffusers_loads_the_file(tmp_path, sana_pipeline, sana_folder, kind):
    """But for the convolutions of single channels: their library wants a rank that the channels divide."""
    transformer, path = sana_pipeline.transformer, tmp_path / "adapter.safetensors"
    layers = ("attn", "conv_inverted", "conv_point", "caption", "embed", "proj_out")
    adapters = trained(transformer, kind, layers)
    naming = sana_adapter_naming(transformer)
    save_adapter(path, {"transformer": adapters}, ModelFormat.DIFFUSERS_LORA, naming, AdapterDescription())
    generator = torch.Generator().manual_seed(2)
    noised, text = torch.randn(2, 4, 4, 6, generator=generator), torch.randn(2, 5, 16, generator=generator)
    diffusers_computes_the_same(
        lambda own: own(noised, text, torch.tensor([100.0, 700.0]), return_dict=False)[0],
        transformer, adapters, sana_folder, path,
    )  # fmt: skip
