"""Checkpoints in one file: same outputs as the folder, no network, and clear words for broken and foreign files."""

import json
import shutil
import socket
from functools import cache
from pathlib import Path

from modules.model.ldm_keys import open_clip_place, unet_name, vae_name
from modules.model.single_file import SD2, STANDARD, config_folder, load_single_file
from modules.model.unet_keys import native_blocks
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError

import torch

import pytest
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

SD15, SD21 = ModelType.STABLE_DIFFUSION_15, ModelType.STABLE_DIFFUSION_21
RESOURCES = Path(__file__).parents[2] / "resources"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write(tensors: dict, path: Path, small_folder: Path | None, **extra) -> Path:
    """Writes a checkpoint and, if asked for, the configs that describe its architecture."""
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save({"state_dict": tensors, "global_step": 7, **extra}, path)
    if small_folder:
        ignored = shutil.ignore_patterns("*.safetensors", "model_index.json")
        shutil.copytree(small_folder, path.with_name(f"{path.stem}.config"), ignore=ignored)
    return path


def outputs(pipeline) -> list[torch.Tensor]:
    """What each component makes of fixed inputs."""
    generator = torch.Generator().manual_seed(1)
    latents, pixels = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 3, 16, 16, generator=generator)
    text = ["red cat", "a (blue) dog!"]
    tokens = pipeline.tokenizer(text, padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        encoded = pipeline.text_encoder(tokens)
        noise = pipeline.unet(latents, torch.tensor([1, 900]), encoded.last_hidden_state).sample
        latent = pipeline.vae.encode(pixels).latent_dist
        decoded = pipeline.vae.decode(latents).sample
    return [tokens, encoded.last_hidden_state, encoded.pooler_output, noise, latent.mean, latent.std, decoded]


def assert_same(loaded, expected) -> None:
    # the same weights through the same arithmetic: equal to the last bit
    for ours, theirs in zip(outputs(loaded), outputs(expected), strict=True):
        assert torch.equal(ours, theirs)
    theirs = {name: value for name, value in expected.scheduler.config.items() if not name.startswith("_")}
    assert {name: loaded.scheduler.config[name] for name in theirs} == theirs
    assert type(loaded.scheduler) is type(expected.scheduler)
    for component in (loaded.unet, loaded.vae, loaded.text_encoder):
        assert not component.training and all(t.dtype == torch.float32 for t in component.parameters())


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_equals_the_folder(no_network, tmp_path, small_pipeline, small_folder, small_tensors, ending):
    path = write(small_tensors, tmp_path / f"a model v1.0{ending}", small_folder)
    assert_same(load_single_file(path, SD15), small_pipeline)


def test_folder_without_config_in_its_name(tmp_path, small_pipeline, small_folder, small_tensors):
    path = write(small_tensors, tmp_path / "model.safetensors", small_folder)
    (tmp_path / "model.config").rename(tmp_path / "model")
    assert config_folder(path) == tmp_path / "model"
    assert_same(load_single_file(path, SD15), small_pipeline)


def test_open_clip_text_encoder(no_network, tmp_path, small_pipeline, small_folder, small_open_clip_tensors):
    path = write(small_open_clip_tensors, tmp_path / "model.safetensors", small_folder)
    assert_same(load_single_file(path, SD21), small_pipeline)


def test_text_encoder_names_without_their_middle_level(tmp_path, small_pipeline, small_folder, small_tensors):
    tensors = {name.replace("transformer.text_model.", "transformer."): t for name, t in small_tensors.items()}
    path = write(tensors, tmp_path / "model.safetensors", small_folder)
    assert_same(load_single_file(path, SD15), small_pipeline)


def test_loads_from_half_precision_and_leaves_the_file_alone(tmp_path, small_folder, small_tensors):
    path = write({name: t.half() for name, t in small_tensors.items()}, tmp_path / "model.safetensors", small_folder)
    before = path.read_bytes()
    pipeline = load_single_file(path, SD15)
    weight = pipeline.unet.conv_in.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight.half(), small_tensors["model.diffusion_model.input_blocks.0.0.weight"].half())
    with torch.no_grad():
        weight.zero_()
    assert path.read_bytes() == before


def test_ema_copies_and_training_losses_are_ignored(tmp_path, small_pipeline, small_folder, small_tensors):
    extra = {
        "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(3),
        "first_stage_model.model_ema.decay": torch.zeros(()),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "alphas_cumprod": torch.zeros(1000),
    }
    path = write({**small_tensors, **extra}, tmp_path / "model.safetensors", small_folder)
    assert_same(load_single_file(path, SD15), small_pipeline)


@pytest.mark.parametrize("model", ["small", "xl"])
def test_peer_reads_the_same_file(request, model):
    # that the names written by hand in conftest are those that others know
    folder, tensors, pipeline = (
        request.getfixturevalue(f"{model}_{kind}") for kind in ("folder", "tensors", "pipeline")
    )
    unet = UNet2DConditionModel.from_single_file(
        dict(tensors), config=str(folder), subfolder="unet", local_files_only=True
    )
    for name, tensor in unet.state_dict().items():
        assert torch.equal(tensor, pipeline.unet.state_dict()[name]), name
    vae = convert_ldm_vae_checkpoint(dict(tensors), pipeline.vae.config)
    for name, tensor in pipeline.vae.state_dict().items():
        assert torch.equal(vae[name], tensor), name


# --- the standard architectures


@cache
def standard(kind: type, model_type: ModelType):
    """A component of a standard architecture on the meta device; shared between tests."""
    component = {UNet2DConditionModel: "unet", AutoencoderKL: "vae", CLIPTextModel: "text_encoder"}[kind]
    config = json.loads((RESOURCES / STANDARD[model_type][0] / component / "config.json").read_text())
    with torch.device("meta"):
        if kind is CLIPTextModel:
            return kind(CLIPTextConfig.from_dict(config))
        return kind.from_config(config)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("model_type", "unet", "text"), [(SD15, 859_520_964, 123_060_480), (SD21, 865_910_724, 340_387_840)]
)
def test_standard_sizes(model_type, unet, text):
    # the published models' parameter counts
    assert count(standard(UNet2DConditionModel, model_type)) == unet
    assert count(standard(AutoencoderKL, model_type)) == 83_653_863
    assert count(standard(CLIPTextModel, model_type)) == text


@pytest.mark.parametrize("model_type", [SD15, SD21, ModelType.STABLE_DIFFUSION_XL_10_BASE])
def test_standard_names_agree_with_the_peer(model_type):
    unet, vae = standard(UNet2DConditionModel, model_type), standard(AutoencoderKL, model_type)
    # numbered stand-ins instead of weights: the peer's converter carries each to its place
    numbered = {name: torch.tensor(k) for k, name in enumerate(unet.state_dict())}
    blocks = native_blocks(unet.config)
    back = convert_ldm_unet_checkpoint({unet_name(n, blocks): t for n, t in numbered.items()}, unet.config)
    assert {name: int(t) for name, t in back.items()} == {name: int(t) for name, t in numbered.items()}
    numbered = {name: torch.full((1, 1, 1, 1), k) for k, name in enumerate(vae.state_dict())}
    back = convert_ldm_vae_checkpoint({vae_name(n, vae.config): t for n, t in numbered.items()}, vae.config)
    assert {name: int(t) for name, t in back.items()} == {name: int(t) for name, t in numbered.items()}


def test_open_clip_names_agree_with_the_peer(small_pipeline, small_open_clip_tensors):
    encoder = small_pipeline.text_encoder
    theirs = convert_open_clip_checkpoint(encoder, dict(small_open_clip_tensors), prefix="cond_stage_model.model.")
    for name in encoder.state_dict():
        place = open_clip_place(name, "cond_stage_model.model.")
        ours = place.piece(small_open_clip_tensors[place.name])
        theirs_name = name if name in theirs else f"text_model.{name}"
        assert torch.equal(ours, theirs[theirs_name]), name


LARGE = (ModelType.STABLE_DIFFUSION_20, SD21)


def test_which_types_predict_velocity():
    velocity = [t for t, (_, changes) in STANDARD.items() if "prediction_type" in changes.get("scheduler", {})]
    assert sorted(velocity) == sorted(LARGE)


@pytest.mark.parametrize("model_type", [SD15, ModelType.STABLE_DIFFUSION_20_BASE, SD21])
def test_whole_loader_at_full_size(no_network, pretend_file, tmp_path, model_type):
    """The whole loader at full size, on the meta device: real configs, tokenizer and scheduler, no gigabytes."""
    unet, vae = standard(UNet2DConditionModel, model_type), standard(AutoencoderKL, model_type)
    text_encoder, second = standard(CLIPTextModel, model_type), STANDARD[model_type][0] == SD2
    blocks = native_blocks(unet.config)
    weights = {unet_name(name, blocks): t for name, t in unet.state_dict().items()}
    weights |= {vae_name(name, vae.config): t for name, t in vae.state_dict().items()}
    for name, tensor in text_encoder.state_dict().items():
        if second:
            place = open_clip_place(name, "cond_stage_model.model.")
            weights[place.name] = torch.cat([tensor] * 3) if place.share is not None else tensor
        else:
            weights[f"cond_stage_model.transformer.text_model.{name}"] = tensor
    pretend_file(weights)
    pipeline = load_single_file(tmp_path / "model.safetensors", model_type)
    large = model_type in LARGE
    assert pipeline.scheduler.config.prediction_type == ("v_prediction" if large else "epsilon")
    assert pipeline.unet.config.sample_size == (96 if large else 64)
    assert bool(pipeline.unet.config.upcast_attention) == (model_type == SD21)
    assert pipeline.tokenizer.pad_token_id == (0 if second else 49407)
    assert len(pipeline.tokenizer) == pipeline.text_encoder.config.vocab_size == 49408
    # the one buffer that a file does not hold
    position_ids = dict(pipeline.text_encoder.named_buffers()).popitem()[1]
    assert torch.equal(position_ids, torch.arange(77)[None])


# --- files that are no checkpoint


def refuse(path: Path, *expected: str, model_type: ModelType = SD15) -> None:
    with pytest.raises(UserError) as caught:
        load_single_file(path, model_type)
    message = str(caught.value)
    assert "\n" not in message and str(path.stem) in message
    for text in expected:
        assert text in message, message


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS"),
        (b"\x00" * 100, "truncated"),
        (b"plain words, and some more of them", "truncated"),
    ],
)
def test_not_a_model(tmp_path, ending, content, expected):
    path = tmp_path / f"model{ending}"
    path.write_bytes(content)
    refuse(path, expected, "Download")


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_truncated(tmp_path, small_tensors, small_folder, ending, share):
    path = write(small_tensors, tmp_path / f"model{ending}", small_folder)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refuse(path, "truncated")


def test_unknown_ending(tmp_path, small_tensors):
    path = write(small_tensors, tmp_path / "model.sft", None)
    refuse(path, ".sft", ".safetensors, .gguf or .ckpt")


def test_pickle_with_code_is_refused_and_not_run(tmp_path, small_tensors):
    trap = Trap(tmp_path / "ran")
    path = write(small_tensors, tmp_path / "model.ckpt", None, callbacks=[trap])
    refuse(path, "Python objects", "safetensors")
    assert not (tmp_path / "ran").exists()


class Trap:
    """Unpickles by making a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"], "LoRA"),
        (["unet.mid_block.attentions.0.proj_in.lora_A.weight"], "LoRA"),
        (["lora_te_text_model_encoder_layers_0_mlp_fc1.oft_blocks"], "LoRA"),
        (
            [
                "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
                "model.diffusion_model.input_blocks.0.0.weight",
                "model.diffusion_model.label_emb.0.0.weight",
                "first_stage_model.quant_conv.weight",
            ],
            "SDXL",
        ),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "SD 3"),
        (["double_blocks.0.img_attn.qkv.weight"], "Flux"),
        (["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "diffusers folder"),
        (["encoder.down.0.block.0.conv1.weight", "quant_conv.weight"], "VAE alone"),
        (["emb_params"], "embedding"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "no VAE and no text encoder"),
        (["something.weight"], "no model at all"),
    ],
)
def test_other_kinds_of_model(tmp_path, names, expected):
    path = write({name: torch.zeros(2, 2) for name in names}, tmp_path / "model.safetensors", None)
    refuse(path, expected, "STABLE_DIFFUSION_15")


def test_other_generation(tmp_path, small_tensors, small_open_clip_tensors):
    path = write(small_tensors, tmp_path / "model.safetensors", None)
    refuse(path, "1.x", "STABLE_DIFFUSION_15", model_type=SD21)
    path = write(small_open_clip_tensors, tmp_path / "model.safetensors", None)
    refuse(path, "2.x", "STABLE_DIFFUSION_21")


def test_family_of_another_model_type(tmp_path):
    with pytest.raises(UserError, match="can't be loaded as PIXART_SIGMA.*STABLE_DIFFUSION_15"):
        load_single_file(tmp_path / "model.safetensors", ModelType.PIXART_SIGMA)


def test_own_architecture_without_its_description(tmp_path, small_tensors):
    refuse(write(small_tensors, tmp_path / "model.safetensors", None), "shape", "model.config")


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("model.diffusion_model.out.2.bias", "unet"),
        ("first_stage_model.quant_conv.bias", "vae"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "text_encoder"),
    ],
)
def test_missing_tensor(tmp_path, small_tensors, small_folder, name, component):
    tensors = {key: tensor for key, tensor in small_tensors.items() if key != name}
    refuse(write(tensors, tmp_path / "model.safetensors", small_folder), f"the {component} lacks 1", name)


def test_tensor_without_a_place(tmp_path, small_tensors, small_folder):
    tensors = {**small_tensors, "model.diffusion_model.output_blocks.6.0.in_layers.0.weight": torch.ones(3)}
    refuse(write(tensors, tmp_path / "model.safetensors", small_folder), "no place", "output_blocks.6")


def test_inpainting_model(tmp_path, small_tensors, small_folder):
    name = "model.diffusion_model.input_blocks.0.0.weight"
    tensors = {**small_tensors, name: torch.zeros(32, 9, 3, 3)}
    refuse(write(tensors, tmp_path / "model.safetensors", small_folder), "[32, 9, 3, 3]", "[32, 4, 3, 3]", "inpainting")


def test_broken_description(tmp_path, small_tensors, small_folder):
    path = write(small_tensors, tmp_path / "model.safetensors", small_folder)
    config = tmp_path / "model.config" / "unet" / "config.json"
    good = config.read_text()
    config.write_text(good[:-10])
    refuse(path, "config.json", "JSON")
    config.write_text("[]")
    refuse(path, "list")
    config.write_text(json.dumps({**json.loads(good), "down_block_types": ["NoSuchBlock", "DownBlock2D"]}))
    refuse(path, "NoSuchBlock")


def test_tokenizer_that_does_not_fit(tmp_path, small_tensors, small_folder):
    path = write(small_tensors, tmp_path / "model.safetensors", small_folder)
    shutil.rmtree(tmp_path / "model.config" / "tokenizer")
    refuse(path, "49408", "tokenizer")
