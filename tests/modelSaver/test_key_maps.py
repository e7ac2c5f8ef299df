"""Every key of a full-size SD 1.5 and SDXL adapter is one that ComfyUI knows.

Its key map is written down here from the original models' structure. Which native layer is which of diffusers' comes
from diffusers' own converter of checkpoints.
"""

from dataclasses import dataclass

from modules.model.unet_keys import layer_paths, unet_adapter_naming
from modules.modelSaver.adapter_layout import split_key
from modules.modelSaver.save_adapter import encode_adapter
from modules.util.AdapterNaming import AdapterNaming
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat

import torch

import pytest
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}  # the rest is diffusers' default
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
PARTS = {
    "lora_down.weight": torch.zeros(1, 1),
    "lora_up.weight": torch.zeros(1, 1),
    "alpha": torch.tensor(1.0),
    "dora_scale": torch.ones(1, 1),
}


def resnet(block: str, skip: bool) -> set[str]:
    return {f"{block}.{leaf}" for leaf in ["in_layers.2", "emb_layers.1", "out_layers.3"] + ["skip_connection"] * skip}


def transformer(block: str, depth: int) -> set[str]:
    attention = [f"attn{n}.{leaf}" for n in (1, 2) for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
    inner = [*attention, "ff.net.0.proj", "ff.net.2"]
    names = {f"{block}.transformer_blocks.{i}.{leaf}" for i in range(depth) for leaf in inner}
    return names | {f"{block}.proj_in", f"{block}.proj_out"}


def native_sd15() -> set[str]:
    names = {"time_embed.0", "time_embed.2", "input_blocks.0.0", "out.2"}
    for i in (1, 2, 4, 5, 7, 8, 10, 11):
        names |= resnet(f"input_blocks.{i}.0", skip=i in (4, 7))
        names |= transformer(f"input_blocks.{i}.1", 1) if i < 10 else set()
    names |= {f"input_blocks.{i}.0.op" for i in (3, 6, 9)}
    names |= resnet("middle_block.0", False) | transformer("middle_block.1", 1) | resnet("middle_block.2", False)
    for i in range(12):
        names |= resnet(f"output_blocks.{i}.0", skip=True)
        names |= transformer(f"output_blocks.{i}.1", 1) if i > 2 else set()
    return names | {"output_blocks.2.1.conv", "output_blocks.5.2.conv", "output_blocks.8.2.conv"}


def native_sdxl() -> set[str]:
    names = {"time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2", "input_blocks.0.0", "out.2"}
    depths = {4: 2, 5: 2, 7: 10, 8: 10}
    for i in (1, 2, 4, 5, 7, 8):
        names |= resnet(f"input_blocks.{i}.0", skip=i in (4, 7))
        names |= transformer(f"input_blocks.{i}.1", depths[i]) if i in depths else set()
    names |= {"input_blocks.3.0.op", "input_blocks.6.0.op"}
    names |= resnet("middle_block.0", False) | transformer("middle_block.1", 10) | resnet("middle_block.2", False)
    for i in range(9):
        names |= resnet(f"output_blocks.{i}.0", skip=True)
        names |= transformer(f"output_blocks.{i}.1", 10 if i < 3 else 2) if i < 6 else set()
    return names | {"output_blocks.2.2.conv", "output_blocks.5.2.conv"}


def clip_layers(layers: int) -> set[str]:
    leaves = [f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")] + ["mlp.fc1", "mlp.fc2"]
    return {f"text_model.encoder.layers.{i}.{leaf}" for i in range(layers) for leaf in leaves}


def diffusers_paths(names: set[str], config: dict) -> dict[str, str]:
    """Native layer name -> diffusers path: numbers stand for the tensors on their way through the converter."""
    ordered, unused = sorted(names), torch.tensor(-1)
    blocks = {name.rpartition(".in_layers")[0] for name in names if ".in_layers" in name}
    norms = {f"{block}.{piece}.0" for block in blocks for piece in ("in_layers", "out_layers")} | {"out.0"}
    checkpoint = {}
    for ending in ("weight", "bias"):
        checkpoint |= {f"model.diffusion_model.{name}.{ending}": unused for name in norms}
        checkpoint |= {f"model.diffusion_model.{name}.{ending}": torch.tensor(n) for n, name in enumerate(ordered)}
    converted = convert_ldm_unet_checkpoint(checkpoint, config)
    return {
        ordered[number]: path.removesuffix(".weight")
        for path, number in ((path, int(tensor)) for path, tensor in converted.items() if path.endswith(".weight"))
        if number >= 0
    }


@dataclass(frozen=True)
class Case:
    """A model on the meta device and what its layers are called natively."""

    unet: UNet2DConditionModel
    encoders: dict[str, torch.nn.Module]
    native: set[str]
    # component -> (kohya's prefix, ComfyUI's name, layers in transformers' names of files)
    clips: dict[str, tuple[str, str, set[str]]]

    @property
    def naming(self) -> AdapterNaming:
        return unet_adapter_naming(self.unet, self.encoders)

    def keys(self, model_format: ModelFormat) -> set[str]:
        """The keys of an adapter on every layer."""
        modules = {"unet": self.unet, **self.encoders}
        parts = {component: dict.fromkeys(layer_paths(module), PARTS) for component, module in modules.items()}
        return encode_adapter(parts, model_format, self.naming, DataType.FLOAT_32).keys()


@pytest.fixture(scope="module", params=["SD 1.5", "SDXL"])
def case(request) -> Case:
    with torch.device("meta"):
        if request.param == "SD 1.5":
            encoders = {"text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP_L))}
            clips = {"text_encoder": ("lora_te", "clip_l", clip_layers(12))}
            return Case(UNet2DConditionModel(**SD15), encoders, native_sd15(), clips)
        encoders = {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP_L)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G, projection_dim=1280)),
        }
        clips = {
            "text_encoder": ("lora_te1", "clip_l", clip_layers(12)),
            "text_encoder_2": ("lora_te2", "clip_g", clip_layers(32) | {"text_projection"}),
        }
        return Case(UNet2DConditionModel(**SDXL), encoders, native_sdxl(), clips)


def test_every_native_key_is_in_the_map(case):
    layers = {f"diffusion_model.{name}" for name in case.native}
    for _, clip, names in case.clips.values():
        layers |= {f"text_encoders.{clip}.transformer.{name}" for name in names}
    endings = ("lora_A.weight", "lora_B.weight", "alpha", "dora_scale")
    assert case.keys(ModelFormat.COMFY_LORA) == {f"{layer}.{ending}" for layer in layers for ending in endings}


def test_every_kohya_key_is_in_the_map(case):
    paths = diffusers_paths(case.native, dict(case.unet.config)).values()
    layers = {f"lora_unet_{path.replace('.', '_')}" for path in paths}
    for prefix, _, names in case.clips.values():
        layers |= {f"{prefix}_{name.replace('.', '_')}" for name in names}
    endings = ("lora_down.weight", "lora_up.weight", "alpha", "dora_scale")
    assert case.keys(ModelFormat.KOHYA_LORA) == {f"{layer}.{ending}" for layer in layers for ending in endings}


def test_native_names_stand_for_the_right_layers(case):
    paths = diffusers_paths(case.native, dict(case.unet.config))
    assert len(paths) == len(case.native) == len(layer_paths(case.unet))
    names = case.naming.write[ModelFormat.ORIGINAL_LORA]
    assert {names["unet", path]: path for path in paths.values()} == paths


def test_every_program_s_spelling_is_read(case):
    """kohya by either structure, ComfyUI, diffusers, peft, and OneTrainer's dotted names."""
    read = case.naming.read
    for native, path in diffusers_paths(case.native, dict(case.unet.config)).items():
        flat = path.replace(".", "_")
        for name in (
            *(f"lora_unet_{native.replace('.', '_')}", f"lora_unet_{flat}", f"lycoris_{flat}"),
            *(native, f"diffusion_model.{native}", f"unet.{native}"),
            *(path, f"unet.{path}", f"lora_unet.{path}", f"base_model.model.{path}"),
        ):
            assert read[name] == ("unet", path)
            assert split_key(f"{name}.lora_down.weight") == (name, "lora_down.weight")
    for component, (prefix, clip, names) in case.clips.items():
        for name in names:
            for spelling in (f"{prefix}_{name.replace('.', '_')}", f"{clip}.{name}", f"{prefix}.{name}",
                             f"{component}.{name}", f"text_encoders.{clip}.transformer.{name}"):  # fmt: skip
                assert read[spelling][0] == component
                assert f"text_model.{read[spelling][1].removeprefix('text_model.')}" in (name, f"text_model.{name}")


def test_every_diffusers_key_names_a_layer_of_the_pipelines_modules(case):
    """Its reader takes the key apart at the component's name and hooks the layer of that name."""
    endings = (".lora_A.weight", ".lora_B.weight")
    kinds = torch.nn.Linear, torch.nn.Conv2d
    modules = {"unet": case.unet, **case.encoders}
    layers = {
        # transformers 5 dropped a level that files hold; the reader drops it, too
        f"{component}.{name}" if component == "unet" or name == "text_projection" else f"{component}.{file_path(name)}"
        for component, module in modules.items()
        for name, layer in module.named_modules()
        if isinstance(layer, kinds)
    }
    keys = {key for key in case.keys(ModelFormat.DIFFUSERS_LORA) if key.endswith(endings)}
    assert keys == {f"{layer}{ending}" for layer in layers for ending in endings}


def file_path(name: str) -> str:
    return f"text_model.{name.removeprefix('text_model.')}"


def test_diffusers_reader_of_kohya_keys_finds_every_layer_but_two(case):
    """Where its own converters put them, against the modules' own names."""
    keys = [key for key in case.keys(ModelFormat.KOHYA_LORA) if not key.endswith("dora_scale")]
    converted, _ = _convert_non_diffusers_lora_to_diffusers({key: torch.ones(1, 1) for key in keys})
    found = set()
    for component in ("unet", *case.clips):
        start = f"{component}."
        own = {key.removeprefix(start): value for key, value in converted.items() if key.startswith(start)}
        if component == "unet":
            own = convert_unet_state_dict_to_peft(own)
        else:
            own = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
        found |= {start + key.removesuffix(".lora_A.weight") for key in own if key.endswith(".lora_A.weight")}
    expected = {f"unet.{name}" for name in layer_paths(case.unet)}
    for component, (_, _, names) in case.clips.items():
        expected |= {f"{component}.{name}" for name in names}
    # the two layers that embed SDXL's sizes and crops: a limit of this reader, of which ComfyUI's is free
    assert expected - found == expected & {"unet.add_embedding.linear_1", "unet.add_embedding.linear_2"}
    assert found - expected <= {"unet.add.embedding.linear"}


@pytest.mark.parametrize(
    "model_format", [f for f in ModelFormat if f.name.endswith("LORA") or f == ModelFormat.INTERNAL]
)
def test_what_is_written_is_read_as_the_same_layer(case, model_format):
    naming = case.naming
    names = naming.write[model_format]
    everything = {(component, path) for component, module in {"unet": case.unet, **case.encoders}.items()
                  for path in layer_paths(module)}  # fmt: skip
    # the original code has one layout for the UNet, and none that its text encoders share
    wanted = {layer for layer in everything if layer[0] == "unet" or model_format != ModelFormat.ORIGINAL_LORA}
    assert names.keys() == wanted and len(set(names.values())) == len(wanted)
    assert all(naming.read[name] == layer for layer, name in names.items())
