"""Layer names of adapter files, against lists that were written down from the original models' structure."""

from modules.model.unet_keys import clip_naming, layer_paths, native_blocks, native_unet_path, unet_adapter_naming
from modules.util.AdapterNaming import AdapterNaming
from modules.util.enum.ModelFormat import ModelFormat

import torch

import pytest
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

# diffusers path -> native path in Stable Diffusion 1.5
KNOWN_SD15 = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.resnets.1.time_emb_proj": "input_blocks.2.0.emb_layers.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.4.0.skip_connection",
    "down_blocks.2.attentions.1.proj_in": "input_blocks.8.1.proj_in",
    "down_blocks.3.resnets.1.conv2": "input_blocks.11.0.out_layers.3",
    "mid_block.resnets.0.conv1": "middle_block.0.in_layers.2",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": "middle_block.1.transformer_blocks.0.ff.net.0.proj",
    "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
    "up_blocks.1.attentions.2.proj_out": "output_blocks.5.1.proj_out",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "up_blocks.2.upsamplers.0.conv": "output_blocks.8.2.conv",
    "up_blocks.3.resnets.2.conv_shortcut": "output_blocks.11.0.skip_connection",
    "conv_out": "out.2",
}


def native_sd15() -> set[str]:
    """Linear and convolution layers of the original SD 1.5 UNet, written from its structure."""

    def resnet(block: str, skip: bool) -> set[str]:
        leaves = ["in_layers.2", "emb_layers.1", "out_layers.3"] + ["skip_connection"] * skip
        return {f"{block}.{leaf}" for leaf in leaves}

    def transformer(block: str) -> set[str]:
        attention = [f"attn{n}.{leaf}" for n in (1, 2) for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
        inner = [*attention, "ff.net.0.proj", "ff.net.2"]
        return {f"{block}.proj_in", f"{block}.proj_out", *(f"{block}.transformer_blocks.0.{leaf}" for leaf in inner)}

    names = {"time_embed.0", "time_embed.2", "input_blocks.0.0", "out.2"}
    for i in (1, 2, 4, 5, 7, 8, 10, 11):
        names |= resnet(f"input_blocks.{i}.0", skip=i in (4, 7))
        names |= transformer(f"input_blocks.{i}.1") if i < 10 else set()
    names |= {f"input_blocks.{i}.0.op" for i in (3, 6, 9)}
    names |= resnet("middle_block.0", False) | transformer("middle_block.1") | resnet("middle_block.2", False)
    for i in range(12):
        names |= resnet(f"output_blocks.{i}.0", skip=True)
        names |= transformer(f"output_blocks.{i}.1") if i > 2 else set()
    return names | {"output_blocks.2.1.conv", "output_blocks.5.2.conv", "output_blocks.8.2.conv"}


def meta_unet(**config) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def text_encoder(width: int = 64) -> CLIPTextModel:
    config = CLIPTextConfig(hidden_size=width, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
    with torch.device("meta"):
        return CLIPTextModel(config)


@pytest.fixture(scope="module")
def sd15() -> AdapterNaming:
    unet = meta_unet(sample_size=64, cross_attention_dim=768, attention_head_dim=8)  # the rest is diffusers' default
    return unet_adapter_naming(unet, {"text_encoder": text_encoder()})


def test_native_names_of_sd15(sd15):
    names = sd15.write[ModelFormat.COMFY_LORA]
    for path, native in KNOWN_SD15.items():
        assert names["unet", path] == f"diffusion_model.{native}"
    unet = [name.removeprefix("diffusion_model.") for (component, _), name in names.items() if component == "unet"]
    assert len(unet) == len(set(unet))
    assert set(unet) == native_sd15()


def test_names_of_every_format_stand_for_one_layer(sd15):
    layers = set(sd15.write[ModelFormat.INTERNAL])
    for model_format, names in sd15.write.items():
        assert len(set(names.values())) == len(names)
        assert set(names) == layers or model_format == ModelFormat.ORIGINAL_LORA
        assert all(sd15.read[name] == layer for layer, name in names.items())


def test_other_spellings_are_read(sd15):
    attention = ("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    for name in (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    ):
        assert sd15.read[name] == attention


@pytest.mark.parametrize("level", ["", "text_model."])
def test_clip_names_hold_text_model_with_and_without_it(level):
    path = f"{level}encoder.layers.0.mlp.fc1"
    naming = clip_naming("text_encoder", [path], "lora_te", "clip_l")
    layer = ("text_encoder", path)
    assert naming.write[ModelFormat.KOHYA_LORA][layer] == "lora_te_text_model_encoder_layers_0_mlp_fc1"
    assert naming.write[ModelFormat.DIFFUSERS_LORA][layer] == "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    comfy = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
    assert naming.write[ModelFormat.COMFY_LORA][layer] == comfy
    for name in ("lora_te_encoder_layers_0_mlp_fc1", "lora_te1_text_model_encoder_layers_0_mlp_fc1"):
        assert naming.read[name] == layer
    assert naming.read["text_encoder.encoder.layers.0.mlp.fc1"] == layer


def test_two_level_unet():
    blocks = ("CrossAttnDownBlock2D",) * 2, ("CrossAttnUpBlock2D",) * 2
    config = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 16}
    unet = meta_unet(down_block_types=blocks[0], up_block_types=blocks[1], attention_head_dim=4, **config)
    names = unet_adapter_naming(unet, {}).write[ModelFormat.ORIGINAL_LORA]
    assert len(names) == len(layer_paths(unet))
    for path, native in {
        "down_blocks.1.attentions.0.proj_in": "input_blocks.3.1.proj_in",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
        "up_blocks.1.resnets.1.conv1": "output_blocks.3.0.in_layers.2",
    }.items():
        assert names["unet", path] == native


def test_sdxl_shape_and_its_two_text_encoders():
    unet = meta_unet(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
        use_linear_projection=True,
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    encoders = {"text_encoder": text_encoder(), "text_encoder_2": text_encoder(1280)}
    naming = unet_adapter_naming(unet, encoders)
    comfy, kohya = naming.write[ModelFormat.COMFY_LORA], naming.write[ModelFormat.KOHYA_LORA]
    assert comfy["unet", "add_embedding.linear_2"] == "diffusion_model.label_emb.0.2"
    assert comfy["unet", "up_blocks.1.upsamplers.0.conv"] == "diffusion_model.output_blocks.5.2.conv"
    (layer,) = [key for key in kohya if key[0] == "text_encoder_2" and key[1].endswith("layers.1.mlp.fc2")]
    assert kohya[layer] == "lora_te2_text_model_encoder_layers_1_mlp_fc2"
    assert comfy[layer] == "text_encoders.clip_g.transformer.text_model.encoder.layers.1.mlp.fc2"


def test_wide_single_encoder_is_clip_h():
    naming = unet_adapter_naming(meta_unet(block_out_channels=(32, 32, 32, 32)), {"text_encoder": text_encoder(1024)})
    assert any(".clip_h." in name for name in naming.write[ModelFormat.COMFY_LORA].values())


def test_layers_of_other_models_are_refused():
    blocks = native_blocks(meta_unet(block_out_channels=(32, 32, 32, 32)).config)
    for path in ("double_blocks.0.img_attn.qkv", "down_blocks.0.resnets.0.conv3", "down_blocks.9.resnets.0.conv1"):
        with pytest.raises(ValueError, match="has no native name"):
            native_unet_path(path, blocks)


def test_ambiguous_names_are_refused():
    with pytest.raises(ValueError, match="stands for both"):
        AdapterNaming.build({ModelFormat.KOHYA_LORA: {("unet", "a.b"): "a_b", ("unet", "a_b"): "a_b"}}, {})
