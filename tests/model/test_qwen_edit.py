"""Qwen-Image-Edit and its successors: captions, predictions, samples and files against diffusers' pipelines; runs."""

import copy
import json
import shutil
from functools import cache, partial
from pathlib import Path

from modules.dataLoader.Encoder import Encoder
from modules.model.QwenEditModel import CLEAN_MARK, QwenEditModel
from modules.model.QwenModel import QwenModel
from modules.model.recognize_model import find_model_type
from modules.model.StandardSource import StandardSource
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.save_adapter import save_adapter
from modules.modelSaver.weight_output import ModelWriter
from modules.module.AdapterSet import AdapterSet
from modules.trainer.encoded_size import encoded_bytes
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError
from tests.adapters import disturb
from tests.model.conditioned_families import EDITING, draw_pairs
from tests.model.family_checks import (
    CLOSE,
    KINDS,
    SCALED,
    flow_options,
    quantized_base_trains,
    same_bytes_after_a_stop,
    same_picture,
)
from tests.model.key_checks import ADAPTER_KINDS, diffusers_computes_the_same
from tests.model.test_flux2_files import same
from tests.model.test_qwen_files import text_tensors

import torch

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")
CAPTIONS = ["a red cat", "a blue dog " * 3]
every_variant = pytest.mark.parametrize("variant", ["edit", "plus"])


def load(folder: Path, **options) -> QwenEditModel:
    config = TrainConfig.from_dict({"base_model_name": str(folder), "model_type": "QWEN_EDIT", **options})
    return QwenEditModel.load(config, CPU)


shared = cache(load)


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Targets and other images `[2, 3, 32, 48]` in [-1, 1], of 256 levels."""
    generator = torch.Generator().manual_seed(4)
    first, second = (torch.randint(256, (2, 3, 32, 48), generator=generator) / 127.5 - 1 for _ in range(2))
    return first, second


def image_of(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(((pixels / 2 + 0.5) * 255).round().byte().movedim(0, -1).numpy())


def as_pipeline(pipeline, variant: str, image: Image.Image) -> Image.Image | list[Image.Image]:
    """What the pipeline gives its text encoder of an image."""
    small = pipeline.image_processor.resize(image, *reversed(pipeline_qwenimage_edit_plus.calculate_dimensions(
        pipeline_qwenimage_edit_plus.CONDITION_IMAGE_SIZE, image.width / image.height
    )))  # fmt: skip
    return [small] if variant == "plus" else image


@torch.no_grad()
@every_variant
def test_instructions_are_those_of_the_peer(qwen_edit_folders, qwen_edit_pipelines, variant):
    model, peer = shared(qwen_edit_folders[variant]), qwen_edit_pipelines[variant]
    together = model.encode_instructions(CAPTIONS, pictures()[1])
    # of 320 × 480 pixels, each side rounded, and of 32 × 48
    own = 5 * 8 if variant == "plus" else 2 * 3
    for number, caption in enumerate(CAPTIONS):
        seen = as_pipeline(peer, variant, image_of(pictures()[1][number]))
        expected, _ = peer.encode_prompt(caption, image=seen)
        found = together["hidden"][number][together["mask"][number]]
        # the marks around the picture, the caption, and what stands behind it
        assert len(found) == own + len(caption.split()) + (10 if variant == "plus" else 7)
        torch.testing.assert_close(found, expected[0], **CLOSE)
    assert not together["hidden"][~together["mask"]].any()
    other = model.encode_instructions(CAPTIONS[:1], pictures()[0][:1])["hidden"][0, -5:]
    assert (other - together["hidden"][0][together["mask"][0]][-5:]).abs().max() > 1e-3


@torch.no_grad()
def test_pictures_have_rows_and_columns(qwen_edit_folders, qwen_edit_pipelines):
    """As in transformers 4; diffusers 0.42.1 alone would have them in one row (its issue 14194)."""
    flat = copy.deepcopy(qwen_edit_pipelines["edit"].text_encoder)
    flat._forward_pre_hooks.clear()
    peer = type(qwen_edit_pipelines["edit"])(**{**qwen_edit_pipelines["edit"].components, "text_encoder": flat})
    expected, _ = peer.encode_prompt("a red cat", image=image_of(pictures()[1][0]))
    found = shared(qwen_edit_folders["edit"]).encode_instructions(CAPTIONS[:1], pictures()[1][:1])["hidden"]
    assert found.shape == expected.shape and (found - expected).abs().max() > 0.1


def test_what_is_seen_has_at_most_the_pipeline_s_size(qwen_edit_folders, monkeypatch):
    model = shared(qwen_edit_folders["edit"])
    assert model._seen(torch.zeros(3, 64, 96)).size == (96, 64)
    assert model._seen(torch.zeros(3, 1024, 2048)).size == (1440, 736)
    assert shared(qwen_edit_folders["plus"])._seen(torch.zeros(3, 64, 128)).size == (544, 256)
    # lengths count the marks, and not the picture; a caption can't bring a second one
    assert model.text_limits() == {"text_encoder": 512 - 8}
    assert model.count_tokens("text_encoder", ["a red cat", "a <|image_pad|> cat"]) == [3, 2]


def test_what_captions_take_follows_the_pictures(qwen_edit_folders):
    model = load(qwen_edit_folders["edit"], resolution="64,128")
    told = encoded_bytes(model)
    texts = (("a photo ", 64), ("a photo " * 300, 128))
    short, long = (Encoder(model).caption(text, torch.zeros(3, side, side)) for text, side in texts)
    assert [told.short_caption, told.caption] == [own["hidden"].nbytes + own["mask"].nbytes for own in (short, long)]


@torch.no_grad()
@every_variant
def test_prediction_and_target_are_those_of_the_pipeline(qwen_edit_folders, qwen_edit_pipelines, variant):
    model, peer = shared(qwen_edit_folders[variant]), qwen_edit_pipelines[variant]
    pixels, shown = pictures()
    clean, encoded = model.encode_images(pixels), model.encode_conditioning(shown, None)
    conditions = {**model.encode_instructions(CAPTIONS, shown), **encoded}
    prediction = model.predict(clean, conditions, torch.Generator().manual_seed(1))

    generator = torch.Generator().manual_seed(1)
    torch.rand(2, generator=generator, dtype=torch.float64)
    noise, level = torch.randn(2, 16, 8, 12, generator=generator), prediction.sigma
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(peer.scheduler.config)
    scheduler.sigmas, scheduler.timesteps = level, 1000 * level
    noisy = scheduler.scale_noise(clean, 1000 * level, noise).flatten(2).transpose(1, 2)
    _, rest = peer.prepare_latents(shown[:, :, None], 2, 4, 32, 48, torch.float32, CPU, generator)
    output = peer.transformer(
        hidden_states=torch.cat([noisy, rest], 1), timestep=level, guidance=None,
        encoder_hidden_states_mask=conditions["mask"], encoder_hidden_states=conditions["hidden"],
        img_shapes=[[(1, 8, 12), (1, 8, 12)]] * 2, attention_kwargs={}, return_dict=False,
    )[0][:, : noisy.shape[1]]  # fmt: skip
    torch.testing.assert_close(prediction.predicted.flatten(2).transpose(1, 2), output, **CLOSE)
    torch.testing.assert_close(prediction.target, noise - clean, **CLOSE)
    other = {**conditions, "conditioning_latents": encoded["conditioning_latents"].roll(1, 0)}
    otherwise = model.predict(clean, other, torch.Generator().manual_seed(1))
    assert (otherwise.predicted - prediction.predicted).abs().max() > 1e-3


@every_variant
def test_samples_are_those_of_the_pipeline(qwen_edit_folders, qwen_edit_pipelines, tmp_path, monkeypatch, variant):
    """In the size of the sample, which the pipeline takes only if it is its own."""
    sizes = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: sizes(64 * 96, ratio))
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 64 * 96)
    model, peer = shared(qwen_edit_folders[variant]), qwen_edit_pipelines[variant]
    levels = torch.randint(256, (64, 96, 3), generator=torch.Generator().manual_seed(4)).byte().numpy()
    image, path = Image.fromarray(levels), str(tmp_path / "image.png")
    image.save(path)
    texts = {"prompt": "a red cat", "negative_prompt": "a blue dog number 1"}
    sample = SampleConfig(**texts, width=96, height=64, diffusion_steps=3, cfg_scale=3.0, base_image_path=path)
    drawn, decode = [], model.decode_images
    monkeypatch.setattr(model, "decode_images", lambda latents: (drawn.append(latents), decode(latents))[1])
    found = model.sample(sample, 5, lambda *_: None)
    given = {
        **texts, "image": [image] if variant == "plus" else image, "height": 64, "width": 96, "num_inference_steps": 3,
        "true_cfg_scale": 3.0,
    }  # fmt: skip
    latents, expected = (
        peer(**given, generator=torch.Generator().manual_seed(5), output_type=kind).images[0]
        for kind in ("latent", "pil")
    )
    same_picture(found, expected)
    torch.testing.assert_close(drawn[0][0].flatten(1).T, latents, **CLOSE)
    Image.fromarray(0 * levels).save(path)
    model.sample(sample.model_copy(update={"seed": 6}), 5, lambda *_: None)
    assert (drawn[1] - drawn[0]).abs().max() > 1e-3


# --- runs


def settings(folder: Path, place: Path, **changes) -> dict:
    """A run on pairs, of 8 pictures of one colour each."""
    pairs = draw_pairs(place / "pairs", EDITING)
    common = {"resolution": "32", "custom_conditioning_image": True, "batch_size": 4, "optimizer": SCALED}
    return flow_options(folder, "QWEN_EDIT", concepts=[{"path": str(pairs)}], **{**common, **changes})


def first_sample(options: dict) -> dict:
    image = Path(options["concepts"][0]["path"]) / "0-condlabel.png"
    return {"prompt": "a cat", "width": 32, "height": 32, "diffusion_steps": 1, "base_image_path": str(image)}


@pytest.mark.parametrize(("variant", "method"), [("edit", "LoRA"), ("plus", "full")])
def test_it_learns(make_run, qwen_edit_folders, tmp_path, variant, method):
    run = make_run(own_cache=True)
    trainer = run.trainer(**{**settings(qwen_edit_folders[variant], tmp_path), **KINDS[method], "epochs": 16})
    trainer.run()
    losses = torch.tensor(list(trainer.progress.losses))
    # means of 32 images each
    assert len(losses) == 32 and losses[-8:].mean() < 0.9 * losses[:8].mean()
    if method == "full":
        # with the mark by which ComfyUI tells 2511
        found, expected = load_file(run.output), trainer.model.transformer.state_dict()
        assert found.pop(CLEAN_MARK).numel() == 0 and found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_resumed_run_ends_in_the_same_bytes(make_run, qwen_edit_folders, tmp_path):
    options = settings(qwen_edit_folders["edit"], tmp_path)
    rounds = {"samples": [first_sample(options)], "sample_after": 3, "sample_after_unit": "STEP", "epochs": 4}
    same_bytes_after_a_stop(make_run, {**options, **rounds, "learning_rate": 0.1, "dynamic_timestep_shifting": True})


def test_quantized_base(make_run, wide_qwen_edit_folder, tmp_path):
    """Both halves of the text encoder, too."""
    options = settings(wide_qwen_edit_folder, tmp_path)
    layers = ("transformer_blocks.1.attn.to_q", "transformer_blocks.1.img_mod.1")
    run, samples = make_run(own_cache=True), [first_sample(options)]
    quantized_base_trains(run, {**options, "samples": samples}, "NFLOAT_4", layers, checkpoints=True)


# --- files


def test_components_are_described_as_they_were_published():
    source = StandardSource(ModelType.QWEN_EDIT, "Qwen/Qwen-Image-Edit-2511")
    # Qwen2.5-VL 7B without its head of 152,064 words
    count = sum(parameter.numel() for parameter in source.empty("text_encoder").parameters())
    assert count == 8_292_166_656 - 152_064 * 3584
    assert source.empty("transformer").config.zero_cond_t and source.preparer("processor").patch_size == 14


@pytest.mark.parametrize(("start", "new"), [("", False), ("", True), ("text_encoders.qwen25_7b.transformer.", False)])
def test_a_text_encoder_in_a_file(qwen_edit_folders, qwen_edit_pipelines, tmp_path, start, new):
    """ComfyUI's, as transformers 5 names it, and in a whole checkpoint: with the half for pictures."""
    encoder, path = qwen_edit_pipelines["edit"].text_encoder, tmp_path / "qwen_2.5_vl_7b.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in text_tensors(encoder, start, new=new).items()}, path)
    model = load(qwen_edit_folders["edit"], text_encoder={"model_name": str(path)})
    same(model.components["text_encoder"], encoder.model.requires_grad_(False))
    found, expected = (
        own.encode_instructions(CAPTIONS, pictures()[1])["hidden"] for own in (model, shared(qwen_edit_folders["edit"]))
    )
    assert torch.equal(found, expected)


def test_a_transformer_in_a_file_tells_whether_it_is_2511(qwen_edit_folders, qwen_edit_pipelines, tmp_path):
    own, path = qwen_edit_pipelines["plus"].transformer, tmp_path / "qwen_image_edit_2511_bf16.safetensors"
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in own.state_dict().items()}
              | {f"model.diffusion_model.{CLEAN_MARK}": torch.zeros(0)}, path)  # fmt: skip
    changed = {"transformer": {"model_name": str(path)}}
    same(load(qwen_edit_folders["plus"], **changed).components["transformer"], own.requires_grad_(False))
    with pytest.raises(UserError, match=r"is of Qwen-Image-Edit 2511, but the base model is an older one"):
        assert load(qwen_edit_folders["edit"], **changed).transformer


@pytest.mark.parametrize("method", ["LoRA", "DoRA on outputs"])
def test_diffusers_loads_the_file(qwen_edit_folders, qwen_edit_pipelines, tmp_path, method):
    peer, path = qwen_edit_pipelines["plus"], tmp_path / "adapter.safetensors"
    adapters = disturb(AdapterSet("transformer", peer.transformer, TrainConfig.from_dict(ADAPTER_KINDS[method])), 1)
    naming = QwenEditModel.name_layers(peer.transformer, {})
    save_adapter(path, {"transformer": adapters}, ModelFormat.DIFFUSERS_LORA, naming, AdapterDescription())
    generator = torch.Generator().manual_seed(2)
    given = {
        "hidden_states": torch.randn(2, 12, 16, generator=generator), "timestep": torch.tensor([0.7, 0.1]),
        "encoder_hidden_states": torch.randn(2, 5, 16, generator=generator), "return_dict": False,
        "img_shapes": [[(1, 2, 3), (1, 3, 2)]] * 2,
    }  # fmt: skip
    fresh = partial(type(peer), **{**peer.components, "transformer": copy.deepcopy(peer.transformer)})
    diffusers_computes_the_same(
        lambda own: own(**given)[0], peer.transformer, adapters, qwen_edit_folders["plus"], path, lambda _: fresh()
    )


def test_a_model_from_the_hub_is_saved_with_all_that_pictures_need(qwen_edit_folders, tmp_path):
    folder = qwen_edit_folders["plus"]
    model = load(folder)
    writer = ModelWriter(model, model.config.model_copy(update={"base_model_name": "owner/name"}), ["transformer"])
    writer.write_folder(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "model_index.json").read_text())["processor"][1] == "Qwen2VLProcessor"
    again = load(tmp_path / "saved")
    assert again.is_plus and again.text_fingerprint() == shared(folder).text_fingerprint()


def test_models_are_told_from_those_that_draw(qwen_edit_folders, qwen_folder, tmp_path):
    for folder in qwen_edit_folders.values():
        assert find_model_type(TrainConfig.from_dict({"base_model_name": str(folder)})) == "QWEN_EDIT"
    with pytest.raises(UserError, match="is a model for QwenImageEditPipeline, .* Set model_type to QWEN_EDIT"):
        QwenModel.load(TrainConfig(base_model_name=str(qwen_edit_folders["edit"]), model_type=ModelType.QWEN), CPU)
    with pytest.raises(UserError, match="is incomplete; missing folders: processor"):
        load(qwen_folder)
    path = Path(shutil.copytree(qwen_edit_folders["edit"], tmp_path / "layers")) / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "QwenImageLayeredPipeline"}))
    with pytest.raises(UserError, match="which draws layers and can't be trained here. Name a model for QWEN_EDIT"):
        load(path.parent)
