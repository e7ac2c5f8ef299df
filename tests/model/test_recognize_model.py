"""Which kind of model a folder or file holds."""

import json
from pathlib import Path

from modules.model.recognize_model import find_model_type
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError

import torch

import pytest
from safetensors.torch import save_file


def type_of(path: Path) -> ModelType:
    return find_model_type(TrainConfig(base_model_name=str(path)))


def test_a_folder_by_its_components(mini_base, sd3_folders, flux1_folders, chroma_folder, tmp_path):
    assert type_of(mini_base) == ModelType.STABLE_DIFFUSION_15
    assert {type_of(folder) for folder in flux1_folders.values()} == {ModelType.FLUX_DEV_1}
    assert type_of(chroma_folder) == ModelType.CHROMA_1
    # which of the two it is, its own files tell
    assert {type_of(folder) for folder in sd3_folders.values()} == {ModelType.STABLE_DIFFUSION_3}
    index = json.loads((mini_base / "model_index.json").read_text())
    # one more component than the family has is another family
    index["text_encoder_9"] = ["transformers", "CLIPTextModel"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="text_encoder_9 CLIPTextModel.*--model-type"):
        type_of(tmp_path)


def test_a_folder_by_its_pipeline(inpainting_folder, xl_inpainting_folder, flux1_relative_folders):
    assert type_of(flux1_relative_folders["kontext"]) == ModelType.FLUX_KONTEXT_DEV_1
    assert type_of(flux1_relative_folders["fill"]) == ModelType.FLUX_FILL_DEV_1
    assert type_of(inpainting_folder) == ModelType.STABLE_DIFFUSION_15_INPAINTING
    assert type_of(xl_inpainting_folder) == ModelType.STABLE_DIFFUSION_XL_10_BASE_INPAINTING


def test_a_transformer_s_file_by_the_size_of_its_first_layer(tmp_path):
    path = tmp_path / "model.safetensors"
    for channels, found in ((384, "FLUX_FILL_DEV_1"), (64, "FLUX_DEV_1")):
        save_file({"img_in.weight": torch.ones(8, channels), "double_blocks.0.img_mod.lin.weight": torch.ones(1)}, path)
        assert type_of(path) == ModelType(found)


@pytest.mark.parametrize(
    ("name", "mark", "found"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.1.model.ln_final.bias",
         "STABLE_DIFFUSION_XL_10_BASE_INPAINTING"),
        ("model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.model.ln_final.bias",
         "STABLE_DIFFUSION_20_INPAINTING"),
    ],
)  # fmt: skip
def test_a_file_by_the_size_of_its_first_layer(tmp_path, name, mark, found):
    path = tmp_path / "model.safetensors"
    for channels, suffix in ((9, ""), (4, "none")):
        save_file({name: torch.ones(32, channels, 3, 3), mark: torch.ones(1)}, path)
        if suffix and "20" in found:
            with pytest.raises(UserError, match="which its tensors do not tell"):
                type_of(path)
        else:
            assert type_of(path) == ModelType(found.removesuffix("_INPAINTING") if suffix else found)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "STABLE_DIFFUSION_15"),
        ("conditioner.embedders.1.model.ln_final.bias", "STABLE_DIFFUSION_XL_10_BASE"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "STABLE_DIFFUSION_3"),
        ("joint_blocks.0.x_block.attn.ln_q.weight", "STABLE_DIFFUSION_35"),
        ("double_stream_modulation_img.lin.weight", "FLUX_2"),
        ("cap_pad_token", "Z_IMAGE"),
        ("transformer_blocks.0.txt_mod.1.bias", "QWEN"),
        ("layers.0.adaLN_sa_ln.weight", "ERNIE"),
        ("model.diffusion_model.txtfusion.projector.weight", "KREA_2"),
        ("text_fusion.projector.weight", "KREA_2"),
        ("net.llm_adapter.blocks.0.cross_attn.q_proj.weight", "ANIMA"),
        ("caption_projection.0.linear.weight", "HI_DREAM_FULL"),
        ("embed_image_indicator.weight", "IDEOGRAM_4"),
        ("csize_embedder.mlp.0.weight", "PIXART_ALPHA"),
        ("blocks.0.mlp.inverted_conv.conv.weight", "SANA"),
        ("transformer_blocks.0.ff.conv_inverted.weight", "SANA"),
        ("adaln_single.emb.resolution_embedder.linear_1.weight", "PIXART_ALPHA"),
        ("double_blocks.0.img_mod.lin.weight", "FLUX_DEV_1"),
        ("distilled_guidance_layer.norms.0.scale", "CHROMA_1"),
    ],
)
def test_a_file_by_its_tensors(tmp_path, name, found):
    path = tmp_path / "model.safetensors"
    save_file({name: torch.ones(1), "model.diffusion_model.out.0.bias": torch.ones(1)}, path)
    assert type_of(path) == ModelType(found)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cond_stage_model.model.ln_final.bias", "STABLE_DIFFUSION_21.*which its tensors do not tell.*--model-type"),
        ("blocks.0.cross_attn.kv_linear.weight", "PIXART_SIGMA or PIXART_ALPHA, which its tensors do not tell"),
        ("lora_unet_x.alpha", "not a complete model"),
    ],
)
def test_a_file_that_does_not_tell(tmp_path, name, words):
    path = tmp_path / "model.safetensors"
    save_file({name: torch.ones(1)}, path)
    with pytest.raises(UserError, match=words):
        type_of(path)


def test_broken_and_foreign_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="can't be loaded"):
        type_of(tmp_path / "model.safetensors")
    (tmp_path / "model.ckpt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="--config or --model-type"):
        type_of(tmp_path / "model.ckpt")
