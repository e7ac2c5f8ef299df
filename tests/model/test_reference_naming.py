"""Base models without weights: the standard ones, those of folders, and what is told of folders that are none."""

import json
import shutil

from modules.model.reference_naming import load_base, load_component, reference_of_folder
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.convert import find_reference
from modules.tool.adapter_tool import Wishes, merge
from modules.util.UserError import UserError
from tests.full_size import full_size_models

import torch

import pytest
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def standard():
    """name -> standard model; on the meta device, and nothing here changes them."""
    return {model.name: model for model in full_size_models()}


def test_sizes_of_the_standard_models(standard):
    # the numbers of the published models
    parameters = {
        (name, component): sum(tensor.numel() for tensor in module.parameters())
        for name, model in standard.items()
        for component, module in model.components.items()
    }
    assert parameters == {
        ("Stable Diffusion 1.x", "unet"): 859_520_964,
        ("Stable Diffusion 1.x", "text_encoder"): 123_060_480,
        ("Stable Diffusion 2.x", "unet"): 865_910_724,
        ("Stable Diffusion 2.x", "text_encoder"): 340_387_840,
        ("SDXL", "unet"): 2_567_463_684,
        ("SDXL", "text_encoder"): 123_060_480,
        ("SDXL", "text_encoder_2"): 694_659_840,
        # five channels more than their relatives, each of nine numbers, to 320
        ("Stable Diffusion 1.x inpainting", "unet"): 859_535_364,
        ("Stable Diffusion 1.x inpainting", "text_encoder"): 123_060_480,
        ("Stable Diffusion 2.x inpainting", "unet"): 865_925_124,
        ("Stable Diffusion 2.x inpainting", "text_encoder"): 340_387_840,
        ("SDXL inpainting", "unet"): 2_567_478_084,
        ("SDXL inpainting", "text_encoder"): 123_060_480,
        ("SDXL inpainting", "text_encoder_2"): 694_659_840,
        **{
            (f"Stable Diffusion {name}", component): count
            for name, transformer in (
                ("3 medium", 2_028_328_000),
                ("3.5 large", 8_056_627_520),
                ("3.5 medium", 2_243_171_520),
            )
            for component, count in (
                ("transformer", transformer),
                ("text_encoder", 123_650_304),
                ("text_encoder_2", 694_659_840),
                ("text_encoder_3", 4_762_310_656),
            )
        },
        ("Flux.1 dev", "transformer"): 11_901_408_320,
        ("Flux.1 schnell", "transformer"): 11_891_178_560,
        # as dev; and 320 inputs more to 3072
        ("Flux.1 Kontext dev", "transformer"): 11_901_408_320,
        ("Flux.1 Fill dev", "transformer"): 11_902_391_360,
        ("Flux.2 dev", "transformer"): 32_223_281_152,
        ("Flux.2 Klein 9B", "transformer"): 9_078_581_248,
        ("Flux.2 Klein 4B", "transformer"): 3_875_544_576,
        ("Z-Image", "transformer"): 6_154_908_736,
        ("Chroma", "transformer"): 8_899_983_424,
        **{(f"Qwen-Image{kind}", "transformer"): 20_430_401_088 for kind in ("", "-Edit", "-Edit-2509", "-Edit-2511")},
        ("Ernie-Image", "transformer"): 8_033_490_048,
        ("Krea 2", "transformer"): 12_820_073_036,
        ("Anima", "transformer"): 1_956_405_248,
        ("Ideogram 4", "transformer"): 9_279_288_448,
        ("HiDream-I1", "transformer"): 17_105_733_184,
        ("HiDream-I1", "text_encoder"): 123_781_632,
        ("HiDream-I1", "text_encoder_2"): 694_878_720,
        ("HiDream-I1", "text_encoder_3"): 4_762_310_656,
        ("PixArt alpha", "transformer"): 611_349_152,
        ("PixArt Sigma", "transformer"): 610_856_096,
        ("Sana 1.6B", "transformer"): 1_604_462_752,
        **{(f"PixArt {name}", "text_encoder"): 4_762_310_656 for name in ("alpha", "Sigma")},
    }
    assert not any(model.has_weights for model in standard.values())


@pytest.mark.parametrize(
    ("name", "relative"),
    [
        *((f"{name} inpainting", name) for name in ("Stable Diffusion 1.x", "Stable Diffusion 2.x", "SDXL")),
        ("Flux.1 Kontext dev", "Flux.1 dev"),
        ("Qwen-Image-Edit", "Qwen-Image"),
        ("Qwen-Image-Edit-2511", "Qwen-Image"),
    ],
)
def test_relatives_have_the_names_of_their_layers(standard, name, relative):
    """So that every key of theirs is in the same maps; with no layer more."""
    assert standard[name].naming == standard[relative].naming


# kohya's names, as its trainer writes them: SDXL's UNet in native names, its encoders numbered
FILES = {
    "Stable Diffusion 1.x": {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v": (768, 1280),
        "lora_te_text_model_encoder_layers_11_self_attn_q_proj": (768, 768),
    },
    "Stable Diffusion 2.x": {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v": (1024, 1280),
        "lora_te_text_model_encoder_layers_11_self_attn_q_proj": (1024, 1024),
    },
    "SDXL": {
        "lora_unet_input_blocks_7_1_transformer_blocks_9_attn2_to_v": (2048, 1280),
        "lora_unet_label_emb_0_0": (2816, 1280),
        "lora_te1_text_model_encoder_layers_11_mlp_fc2": (3072, 768),
        "lora_te2_text_model_encoder_layers_31_mlp_fc2": (5120, 1280),
    },
}


def write(path, layers) -> None:
    tensors = {f"{name}.lora_down.weight": torch.ones(1, sides[0]) for name, sides in layers.items()}
    save_file(tensors | {f"{name}.lora_up.weight": torch.ones(sides[1], 1) for name, sides in layers.items()}, path)


@pytest.mark.parametrize("name", FILES)
def test_the_right_model_is_found(standard, tmp_path, name):
    write(tmp_path / "x", FILES[name])
    assert find_reference(read_adapter(tmp_path / "x"), standard.values()) is standard[name]


def test_metadata_decide_where_sizes_do_not(standard, tmp_path):
    # one shared block of 4 fits every width
    tensors = {"lora_te_text_model_encoder_layers_0_mlp_fc1.oft_R.weight": torch.ones(1, 6)}
    for version, name in (("sd_v1", "Stable Diffusion 1.x"), ("sd_v2_v", "Stable Diffusion 2.x")):
        save_file(tensors, tmp_path / "x", {"ss_base_model_version": version})
        assert find_reference(read_adapter(tmp_path / "x"), standard.values()) is standard[name]


def test_the_nearest_model_is_named(standard, tmp_path):
    wrong = FILES["Stable Diffusion 1.x"] | {"lora_te_text_model_encoder_layers_0_mlp_fc1": (768, 99)}
    write(tmp_path / "x", wrong)
    with pytest.raises(UserError, match=r"nearest is .*mlp_fc1.*99") as error:
        find_reference(read_adapter(tmp_path / "x"), standard.values())
    assert "\n" not in str(error.value) and "--base" in str(error.value)


def test_a_folder_with_and_without_weights(small_folder, small_pipeline):
    empty, full = reference_of_folder(small_folder), load_base(small_folder)
    assert empty.naming == full.naming and not empty.has_weights and full.has_weights
    assert empty.components.keys() == full.components.keys() == {"unet", "text_encoder"}
    for name, module in full.components.items():
        expected = getattr(small_pipeline, name).state_dict()
        assert {key: tensor.shape for key, tensor in empty.components[name].state_dict().items()} == {
            key: tensor.shape for key, tensor in expected.items()
        }
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, expected[key]) and not tensor.requires_grad
    unet = load_component(small_folder, "unet")
    assert torch.equal(unet.conv_in.weight, small_pipeline.unet.conv_in.weight)


@pytest.fixture
def single_file(small_tensors, small_folder, tmp_path):
    path = tmp_path / "one file.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in small_tensors.items()}, path)
    ignored = shutil.ignore_patterns("*.safetensors", "model_index.json")
    shutil.copytree(small_folder, path.with_name("one file.config"), ignore=ignored)
    return path


def test_merging_into_a_single_file(single_file, small_pipeline, tmp_path):
    """The result is a diffusers folder."""
    rows, cols = small_pipeline.unet.time_embedding.linear_1.weight.shape
    write(tmp_path / "x", {"lora_unet_time_embedding_linear_1": (cols, rows)})
    merge(tmp_path / "x", tmp_path / "merged", Wishes(base=single_file), lambda _: None)
    merged = load_base(tmp_path / "merged").components["unet"].state_dict()
    for name, tensor in small_pipeline.unet.state_dict().items():
        # the adapter is ones times ones
        assert torch.equal(merged[name], tensor + 1 if name == "time_embedding.linear_1.weight" else tensor)


def broken(folder, what: str) -> None:
    if what == "no index":
        (folder / "model_index.json").unlink()
    elif what == "no JSON":
        (folder / "model_index.json").write_text("{")
    elif what == "another denoiser":
        index = json.loads((folder / "model_index.json").read_text())
        index["unet"] = ["diffusers", "StrangeTransformer"]
        (folder / "model_index.json").write_text(json.dumps(index))
    elif what == "no weights":
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    else:
        (folder / "unet" / "config.json").write_text('{"block_out_channels": "wide"}')


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no index", "no model_index.json"),
        ("no JSON", "model_index.json: can't be read"),
        ("another denoiser", "expected a model with one of UNet2DConditionModel"),
        ("no weights", "unet: can't be loaded"),
        ("wrong config", "UNet2DConditionModel|can't be loaded"),
    ],
)
def test_folders_that_are_no_models(small_folder, tmp_path, what, words):
    folder = tmp_path / "base"
    shutil.copytree(small_folder, folder)
    broken(folder, what)
    with pytest.raises(UserError, match=words) as error:
        load_base(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    assert load_file(small_folder / "unet" / "diffusion_pytorch_model.safetensors")
