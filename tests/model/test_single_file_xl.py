"""SDXL checkpoints in one file, and components in files of their own: same outputs as the folder, and clear words."""

import json
import shutil
from functools import cache
from pathlib import Path

from modules.model.ldm_keys import open_clip_place, unet_name, vae_name
from modules.model.reference_naming import load_base
from modules.model.single_file import RESOURCES, SDXL, XL_CLASSES, SingleFileSource, load_single_file, model_type_of
from modules.model.StableDiffusionXLModel import StableDiffusionXLModel
from modules.model.unet_keys import native_blocks
from modules.model.weights_file import WeightsFile
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError

import torch

import pytest
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from safetensors.torch import save_file
from transformers import CLIPTextConfig, PreTrainedModel

CPU = torch.device("cpu")
XL, SD15 = ModelType.STABLE_DIFFUSION_XL_10_BASE, ModelType.STABLE_DIFFUSION_15
FIRST, SECOND = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
PLACEMENT = torch.tensor([[512.0, 768, 3, 64, 16, 16]])


def write(tensors: dict, path: Path, folder: Path | None = None, metadata: dict | None = None) -> Path:
    """Writes a checkpoint and, if asked for, the configs that describe its architecture."""
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    else:
        torch.save({"state_dict": tensors}, path)
    if folder:
        ignored = shutil.ignore_patterns("*.safetensors", "model_index.json")
        shutil.copytree(folder, path.with_name(f"{path.stem}.config"), ignore=ignored)
    return path


def load(path: Path, **components: Path) -> StableDiffusionXLModel:
    config = TrainConfig(base_model_name=str(path), model_type=XL)
    for component, place in components.items():
        getattr(config, component).model_name = str(place)
    return StableDiffusionXLModel.load(config, CPU)


def outputs(model: StableDiffusionXLModel) -> list[torch.Tensor]:
    """What each component makes of fixed inputs."""
    generator = torch.Generator().manual_seed(1)
    latents, pixels = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 3, 16, 16, generator=generator)
    with torch.no_grad():
        text = model.encode_captions(["a (blue) dog!"])
        prediction = model.predict(latents, {**text, "placement": PLACEMENT}, generator)
        decoded = model.vae.decode(latents).sample
        tokens = [model.tokens(component, ["a (blue) dog!"], None) for component in ("text_encoder", "text_encoder_2")]
        return [*tokens, *text.values(), model.encode_images(pixels), prediction.predicted, prediction.target, decoded]


@cache
def expected(folder: Path) -> list[torch.Tensor]:
    return outputs(load(folder))


def assert_same(model: StableDiffusionXLModel, folder: Path) -> None:
    # the same weights through the same arithmetic: equal to the last bit
    for ours, theirs in zip(outputs(model), expected(folder), strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture
def file(xl_tensors, xl_folder, tmp_path) -> Path:
    return write(xl_tensors, tmp_path / "a model v1.0.safetensors", xl_folder)


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_equals_the_folder(tmp_path, xl_folder, xl_tensors, ending):
    model = load(write(xl_tensors, tmp_path / f"a model v1.0{ending}", xl_folder))
    assert_same(model, xl_folder)
    folder = load(xl_folder)
    assert model.scheduler_config == folder.scheduler_config
    assert model.text_fingerprint() == folder.text_fingerprint()
    assert model.image_fingerprint() == folder.image_fingerprint()


def test_as_a_pipeline_and_for_adapter_tools(file, xl_pipeline):
    assert model_type_of(file) == XL
    pipeline, reference = load_single_file(file, XL), load_base(file)
    for component in XL_CLASSES:
        state = getattr(xl_pipeline, component).state_dict()
        for name, tensor in getattr(pipeline, component).state_dict().items():
            assert torch.equal(tensor, state[name]), name
    assert type(pipeline.scheduler) is type(xl_pipeline.scheduler)
    assert reference.components.keys() == {"unet", "text_encoder", "text_encoder_2"}


def test_each_component_is_read_alone(file, monkeypatch):
    read, tensors = [], WeightsFile.tensors

    def watch(self, names):
        for name, tensor in tensors(self, names):
            read.append(name)
            yield name, tensor

    monkeypatch.setattr(WeightsFile, "tensors", watch)
    model = load(file)
    assert model.image_grid == 4 and model.adapter_naming().read and not read
    for component, start in {
        "text_encoder_2": SECOND, "text_encoder": FIRST, "vae": "first_stage_model.", "unet": "model.diffusion_model.",
    }.items():  # fmt: skip
        read.clear()
        model.components[component]
        assert read and all(name.startswith(start) for name in read)
    assert not any(parameter.is_meta for component in model.components.values() for parameter in component.parameters())
    assert all(parameter.is_contiguous() for parameter in model.components["text_encoder_2"].parameters())


def test_weights_come_in_the_asked_dtype_and_leave_the_file_alone(xl_tensors, xl_folder, tmp_path):
    halves = {name: tensor.half() for name, tensor in xl_tensors.items()}
    path = write(halves, tmp_path / "model.safetensors", xl_folder)
    before = path.read_bytes()
    source = SingleFileSource(path, XL)
    unet = source.module("unet", torch.bfloat16)
    assert {tensor.dtype for tensor in unet.state_dict().values()} == {torch.bfloat16}
    name = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(unet.conv_in.weight, halves[name].bfloat16())
    unet.conv_in.weight.zero_()
    assert path.read_bytes() == before and source.module("unet", torch.float32).conv_in.weight.any()


@pytest.mark.parametrize("spelling", ["layer", "transformers", "no middle level"])
def test_other_spellings_of_the_text_encoders(xl_tensors, xl_pipeline, xl_folder, tmp_path, spelling):
    tensors = dict(xl_tensors)
    if spelling == "layer":
        tensors[f"{SECOND}text_projection.weight"] = tensors.pop(f"{SECOND}text_projection").T
    elif spelling == "no middle level":
        tensors = {name.replace("transformer.text_model.", "transformer."): t for name, t in tensors.items()}
    else:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(SECOND)}
        for name, tensor in xl_pipeline.text_encoder_2.state_dict().items():
            tensors[f"conditioner.embedders.1.transformer.{name}"] = tensor
    assert_same(load(write(tensors, tmp_path / "model.safetensors", xl_folder)), xl_folder)


@pytest.mark.parametrize(
    ("marks", "metadata", "velocity", "zero_snr"),
    [
        ([], {"modelspec.prediction_type": "epsilon"}, False, False),
        ([], {"modelspec.prediction_type": "v"}, True, False),
        (["v_pred"], {}, True, False),
        (["v_pred", "ztsnr"], {}, True, True),
    ],
)
def test_what_a_file_tells_of_its_schedule(xl_tensors, xl_folder, tmp_path, marks, metadata, velocity, zero_snr):
    tensors = {**xl_tensors, **{name: torch.zeros(0) for name in marks}}
    path = write(tensors, tmp_path / "model.safetensors", xl_folder, metadata)
    # the description beside the file would count
    shutil.rmtree(tmp_path / "model.config" / "scheduler")
    model = load(path)
    assert model.velocity == velocity and (model.alphas_cumprod[-1] < 1e-6) == zero_snr
    assert model.pipeline().scheduler.config.prediction_type == ("v_prediction" if velocity else "epsilon")
    assert bool(model.pipeline().scheduler.config.rescale_betas_zero_snr) == zero_snr


def test_peer_reads_the_second_text_encoder(xl_tensors, xl_pipeline):
    encoder = xl_pipeline.text_encoder_2
    # the peer cuts the joint q, k and v by the projection's size, which is the encoder's width in SDXL itself only
    tensors = {**xl_tensors, f"{SECOND}text_projection": torch.zeros(24, 24)}
    found = convert_open_clip_checkpoint(encoder, tensors, prefix=SECOND)
    names = encoder.state_dict().keys() - {"text_projection.weight"}
    assert names <= found.keys()
    for name in names:
        assert torch.equal(found[name], encoder.state_dict()[name]), name


# --- the standard architecture


@cache
def standard(component: str) -> torch.nn.Module:
    config, kind = json.loads((RESOURCES / SDXL / component / "config.json").read_text()), XL_CLASSES[component]
    with torch.device("meta"):
        return kind(CLIPTextConfig.from_dict(config)) if issubclass(kind, PreTrainedModel) else kind.from_config(config)


def test_whole_loader_at_full_size(pretend_file, tmp_path):
    """On the meta device: real configs, tokenizers and scheduler, no gigabytes."""
    blocks = native_blocks(standard("unet").config)
    weights = {unet_name(name, blocks): t for name, t in standard("unet").state_dict().items()}
    weights |= {vae_name(name, standard("vae").config): t for name, t in standard("vae").state_dict().items()}
    weights |= {f"{FIRST}text_model.{name}": t for name, t in standard("text_encoder").state_dict().items()}
    for name, tensor in standard("text_encoder_2").state_dict().items():
        place = open_clip_place(name, SECOND)
        weights[place.name] = torch.cat([tensor] * 3) if place.share is not None else tensor
    # written down from the published checkpoint
    assert weights[f"{SECOND}transformer.resblocks.31.attn.in_proj_weight"].shape == (3840, 1280)
    assert weights["model.diffusion_model.label_emb.0.0.weight"].shape == (1280, 2816)
    assert len([name for name in weights if name.startswith("model.diffusion_model.")]) == 1680
    assert len([name for name in weights if name.startswith("first_stage_model.")]) == 248
    # without logit_scale, which is no part of the text encoder
    assert len([name for name in weights if name.startswith(SECOND)]) == 389
    pretend_file(weights)
    pipeline = load_single_file(tmp_path / "model.safetensors", XL)
    assert type(pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
    assert pipeline.vae.config.scaling_factor == 0.13025 and pipeline.vae.config.force_upcast
    assert [t.pad_token_id for t in (pipeline.tokenizer, pipeline.tokenizer_2)] == [49407, 0]
    assert len(pipeline.tokenizer_2) == pipeline.text_encoder_2.config.vocab_size == 49408
    # ᾱ of the published schedule, at both ends
    assert pipeline.scheduler.alphas_cumprod[[0, 999]].tolist() == pytest.approx([0.99915, 0.0046600], rel=1e-4)


# --- components from files of their own


def bare(tensors: dict, start: str) -> dict:
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def shifted(tensors: dict, name: str) -> dict:
    return {**tensors, name: tensors[name] + 1}


def old_attention(state: dict) -> dict:
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in names.items():
        state = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): t for name, t in state.items()}
    return state


@pytest.mark.parametrize("layout", ["whole", "prefix", "bare", "diffusers", "old diffusers"])
def test_vae_from_a_file(file, xl_tensors, xl_pipeline, xl_folder, tmp_path, layout):
    start = "first_stage_model."
    own = shifted(xl_tensors, f"{start}decoder.conv_out.bias")
    state = shifted(xl_pipeline.vae.state_dict(), "decoder.conv_out.bias")
    tensors = {
        "whole": own,
        "prefix": {name: tensor for name, tensor in own.items() if name.startswith(start)},
        "bare": {**bare(own, start), "loss.logvar": torch.zeros(())},
        "diffusers": state,
        "old diffusers": old_attention(state),
    }[layout]
    for base in (file, xl_folder):
        model = load(base, vae=write(tensors, tmp_path / "vae.safetensors"))
        found, plain = outputs(model), expected(xl_folder)
        assert all(torch.equal(a, b) for a, b in zip(found[:-1], plain[:-1], strict=True))
        torch.testing.assert_close(found[-1], plain[-1] + 1, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("layout", ["prefix", "comfy", "bare", "diffusers"])
def test_unet_from_a_file(file, xl_tensors, xl_pipeline, xl_folder, tmp_path, layout):
    start = "model.diffusion_model."
    own = bare(shifted(xl_tensors, f"{start}out.2.bias"), start)
    prefixes = {"prefix": start, "comfy": "diffusion_model.", "bare": ""}
    tensors = shifted(xl_pipeline.unet.state_dict(), "conv_out.bias")
    if layout in prefixes:
        tensors = {prefixes[layout] + name: tensor for name, tensor in own.items()}
    model = load(file, unet=write(tensors, tmp_path / "unet.safetensors"))
    torch.testing.assert_close(outputs(model)[-3], expected(xl_folder)[-3] + 1, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("layout", ["files", "open clip"])
def test_text_encoders_from_files(file, xl_tensors, xl_pipeline, xl_folder, tmp_path, layout):
    first = {f"text_model.{name}": t for name, t in xl_pipeline.text_encoder.state_dict().items()}
    second = bare(xl_tensors, SECOND) if layout == "open clip" else xl_pipeline.text_encoder_2.state_dict()
    paths = {
        "text_encoder": write(first, tmp_path / "clip_l.safetensors"),
        "text_encoder_2": write(second, tmp_path / "clip_g.safetensors"),
    }
    assert_same(load(file, **paths), xl_folder)


def test_a_checkpoint_may_lack_what_comes_from_elsewhere(xl_tensors, xl_folder, tmp_path):
    tensors = {name: tensor for name, tensor in xl_tensors.items() if not name.startswith("first_stage_model.")}
    path = write(tensors, tmp_path / "model.safetensors", xl_folder)
    assert_same(load(path, vae=xl_folder), xl_folder)
    with pytest.raises(UserError, match="holds no VAE.*vae.model_name"):
        load(path)


# --- files that are none, or others


def refuse(path: Path, *words: str, model_type: ModelType = XL) -> None:
    with pytest.raises(UserError) as caught:
        load_single_file(path, model_type)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_other_generations(xl_tensors, small_tensors, small_open_clip_tensors, small_folder, xl_folder, tmp_path):
    xl = write(xl_tensors, tmp_path / "xl.safetensors", xl_folder)
    refuse(xl, "an SDXL checkpoint", "STABLE_DIFFUSION_XL_10_BASE", model_type=SD15)
    first = write(small_tensors, tmp_path / "first.safetensors", small_folder)
    refuse(first, "a Stable Diffusion 1.x checkpoint", "STABLE_DIFFUSION_15")
    second = write(small_open_clip_tensors, tmp_path / "second.safetensors")
    refuse(second, "a Stable Diffusion 2.x checkpoint", "STABLE_DIFFUSION_21_BASE")
    assert [model_type_of(path) for path in (first, second)] == [SD15, ModelType.STABLE_DIFFUSION_21_BASE]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["conditioner.embedders.0.model.ln_final.bias", "model.diffusion_model.input_blocks.0.0.weight"], "refiner"),
        (["lora_unet_input_blocks_7_1_proj_in.lora_down.weight"], "LoRA"),
        (["encoder.down.0.block.0.conv1.weight"], "VAE alone"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "no VAE and no text encoder and no second text encoder"),
        (["edm_mean", "conditioner.embedders.1.model.ln_final.bias"], "EDM"),
    ],
)
def test_other_kinds_of_model(tmp_path, names, words):
    refuse(write({name: torch.zeros(2, 2) for name in names}, tmp_path / "model.safetensors"), words)


@pytest.mark.parametrize(
    ("name", "component"),
    [
        (f"{SECOND}text_projection", "text_encoder_2"),
        (f"{SECOND}transformer.resblocks.1.attn.in_proj_bias", "text_encoder_2"),
        (f"{FIRST}text_model.final_layer_norm.bias", "text_encoder"),
        ("model.diffusion_model.label_emb.0.2.bias", "unet"),
    ],
)
def test_missing_tensor_is_told_before_anything_is_read(xl_tensors, xl_folder, tmp_path, name, component):
    tensors = {key: tensor for key, tensor in xl_tensors.items() if key != name}
    refuse(write(tensors, tmp_path / "model.safetensors", xl_folder), f"the {component} lacks", name)


def test_shapes_are_told_before_anything_is_read(xl_tensors, xl_folder, tmp_path):
    tensors = {**xl_tensors, f"{SECOND}text_projection": torch.zeros(20, 24)}
    refuse(write(tensors, tmp_path / "model.safetensors", xl_folder), "[24, 20]", "[20, 24]")


def test_a_component_that_does_not_fit(file, xl_tensors, tmp_path):
    broken = {name: t for name, t in bare(xl_tensors, "first_stage_model.").items() if name != "quant_conv.bias"}
    for tensors, words in ((broken, "lacks 1"), ({"x": torch.zeros(2)}, "lacks")):
        model = load(file, vae=write(tensors, tmp_path / "vae.safetensors"))
        with pytest.raises(UserError, match=f"vae.model_name: .*vae.safetensors: the vae {words}"):
            model.components["vae"]
