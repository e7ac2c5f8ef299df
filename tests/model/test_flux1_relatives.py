"""Flux.1 Kontext and Fill: predictions, samples and refusals against diffusers' pipelines, and runs that learn."""

from functools import cache
from pathlib import Path

from modules.model.BaseModel import BaseModel, family_of
from modules.model.flux1_keys import flux1_adapter_naming
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.save_adapter import save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError
from tests.adapters import disturb
from tests.model.conditioned_families import EDITING, INPAINTING, draw_pairs
from tests.model.family_checks import (
    CLOSE,
    KINDS,
    PAIR_KINDS,
    SCALED,
    flow_options,
    quantized_base_trains,
    same_bytes_after_a_stop,
    same_picture,
)
from tests.model.flux1_models import native_tensors
from tests.model.key_checks import ADAPTER_KINDS, diffusers_computes_the_same

import torch
from torch import Tensor, nn

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import save_file

CPU = torch.device("cpu")
TYPES = {"kontext": "FLUX_KONTEXT_DEV_1", "fill": "FLUX_FILL_DEV_1"}
CAPTIONS = ["a red cat", "a blue dog"]
LENGTH = {"text_encoder_2_sequence_length": 24}
every_kind = pytest.mark.parametrize("kind", TYPES)


@cache
def load(folder: Path, kind: str, **options) -> BaseModel:
    config = TrainConfig.from_dict({"base_model_name": str(folder), "model_type": TYPES[kind], **LENGTH, **options})
    return family_of(config).load(config, CPU)


def pictures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Targets, other images `[2, 3, 32, 48]` in [-1, 1], and masks of 0 and 1 with edges anywhere."""
    generator = torch.Generator().manual_seed(4)
    first, second = (torch.rand(2, 3, 32, 48, generator=generator) * 2 - 1 for _ in range(2))
    return first, second, (torch.rand(2, 1, 32, 48, generator=generator) > 0.5).float()


def packed(peer, latents: torch.Tensor) -> torch.Tensor:
    scaled = (latents - peer.vae.config.shift_factor) * peer.vae.config.scaling_factor
    return peer._pack_latents(scaled, *latents.shape)


@torch.no_grad()
@every_kind
def test_prediction_and_target_are_those_of_the_pipeline(flux1_relative_folders, flux1_relatives, kind):
    model, peer = load(flux1_relative_folders[kind], kind), flux1_relatives[kind]
    pixels, other, mask = pictures()
    shown = pixels * (1 - mask) if kind == "fill" else other
    encoded = model.encode_conditioning(shown, mask if kind == "fill" else None)
    conditions = {**model.encode_captions(CAPTIONS), **encoded}
    prediction = model.predict(model.encode_images(pixels), conditions, torch.Generator().manual_seed(1))

    generator = torch.Generator().manual_seed(1)
    torch.rand(2, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 64, 2, 3, generator=generator).flatten(2).transpose(1, 2)
    clean, level = packed(peer, peer.vae.encode(pixels).latent_dist.mode()), prediction.sigma
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(peer.scheduler.config)
    scheduler.sigmas, scheduler.timesteps = level, 1000 * level
    noisy = scheduler.scale_noise(clean, 1000 * level, noise)
    places = peer._prepare_latent_image_ids(2, 2, 3, CPU, torch.float32)
    if kind == "fill":
        cover, rest = peer.prepare_mask_latents(mask, shown, 2, 16, 1, 32, 48, torch.float32, CPU, generator)
        seen = torch.cat([noisy, rest, cover], 2)
    else:
        _, rest, _, more = peer.prepare_latents(shown, 2, 16, 32, 48, torch.float32, CPU, generator)
        seen, places = torch.cat([noisy, rest], 1), torch.cat([places, more])
    hidden, pooled, text_places = peer.encode_prompt(CAPTIONS, max_sequence_length=24)
    expected = peer.transformer(
        hidden_states=seen, encoder_hidden_states=hidden, pooled_projections=pooled, timestep=level, img_ids=places,
        txt_ids=text_places, guidance=torch.full((2,), model.config.transformer.guidance_scale), return_dict=False,
    )[0][:, :6]  # fmt: skip
    torch.testing.assert_close(prediction.predicted.flatten(2).transpose(1, 2), expected, **CLOSE)
    torch.testing.assert_close(prediction.target.flatten(2).transpose(1, 2), noise - clean, **CLOSE)
    changed = {name: value.roll(1, 0) for name, value in encoded.items()}
    otherwise = model.predict(model.encode_images(pixels), {**conditions, **changed}, torch.Generator().manual_seed(1))
    assert (otherwise.predicted - prediction.predicted).abs().max() > 1e-3


@every_kind
def test_samples_are_those_of_the_pipeline(flux1_relative_folders, flux1_relatives, tmp_path, kind):
    model, peer = load(flux1_relative_folders[kind], kind), flux1_relatives[kind]
    pixels, _, mask = pictures()
    image = Image.fromarray(((pixels[0] / 2 + 0.5) * 255).round().byte().movedim(0, -1).numpy())
    covers = Image.fromarray((mask[0, 0] * 255).byte().numpy())
    image.save(tmp_path / "image.png"), covers.save(tmp_path / "mask.png")
    sample = SampleConfig(
        prompt="a red cat", width=48, height=32, diffusion_steps=3, cfg_scale=2.0,
        base_image_path=str(tmp_path / "image.png"), sample_inpainting=kind == "fill",
        mask_image_path=str(tmp_path / "mask.png") if kind == "fill" else "",
    )  # fmt: skip
    found = model.sample(sample, 5, lambda *_: None)
    noise = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(5))
    own = {"mask_image": covers} if kind == "fill" else {"max_area": 32 * 48, "_auto_resize": False}
    expected = peer(
        prompt="a red cat", image=image, height=32, width=48, num_inference_steps=3, guidance_scale=2.0,
        max_sequence_length=24, latents=peer._pack_latents(noise, 1, 16, 4, 6), **own,
    ).images[0]  # fmt: skip
    same_picture(found, expected)
    inverted = Image.fromarray(255 - np.asarray(image))
    inverted.save(tmp_path / "image.png")
    assert np.abs(np.asarray(model.sample(sample, 5, lambda *_: None), int) - np.asarray(found, int)).max() > 1


def settings(folder: Path, kind: str, place: Path, **changes) -> dict:
    """A run on pairs, of 8 pictures of one colour each."""
    pairs = draw_pairs(place / "pairs", INPAINTING if kind == "fill" else EDITING)
    return flow_options(
        folder, TYPES[kind], text_encoder_2={"train": False}, concepts=[{"path": str(pairs)}], resolution="32",
        custom_conditioning_image=kind == "kontext", batch_size=4, **LENGTH, **changes,
    )  # fmt: skip


# as Flux.1 learns with all of them, each is tried with one of its relatives
@pytest.mark.parametrize(
    ("kind", "method"),
    [("kontext", "LoRA"), ("kontext", "OFT"), ("kontext", "RITE"), ("kontext", "full"),
     ("fill", "LoRA"), ("fill", "DoRA"), ("fill", "Stiefel"), ("fill", "full")],
)  # fmt: skip
def test_it_learns(make_run, flux1_relative_folders, tmp_path, kind, method):
    run = make_run(own_cache=True)
    chosen = {"optimizer": SCALED, "learning_rate": 0.03, **(KINDS | PAIR_KINDS)[method]}
    if method == "RITE":
        # at 0.03 its loss rises before it falls, how far is a matter of the machine's rounding
        chosen["learning_rate"] = 0.01
    trainer = run.trainer(**{**settings(flux1_relative_folders[kind], kind, tmp_path), **chosen, "epochs": 16})
    trainer.run()
    losses = torch.tensor(list(trainer.progress.losses))
    # means of 32 images each
    assert len(losses) == 32 and losses[-8:].mean() < 0.9 * losses[:8].mean()
    if method == "full":
        again = {"base_model_name": str(flux1_relative_folders[kind]), "model_type": TYPES[kind]}
        config = TrainConfig.from_dict({**again, "transformer": {"model_name": str(run.output)}})
        written = family_of(config).load(config, CPU).transformer.state_dict()
        assert all(
            torch.equal(tensor, written[name]) for name, tensor in trainer.model.transformer.state_dict().items()
        )


def first_sample(options: dict, kind: str) -> dict:
    """A sample of one step that starts from the first of a run's pictures."""
    folder = Path(options["concepts"][0]["path"])
    sample = {"prompt": "a red cat", "width": 32, "height": 32, "diffusion_steps": 1, "seed": 3}
    own = {"sample_inpainting": True, "mask_image_path": str(folder / "0-masklabel.png")} if kind == "fill" else {}
    return {**sample, "base_image_path": str(folder / "0.png"), **own}


@every_kind
def test_a_resumed_run_ends_in_the_same_bytes(make_run, flux1_relative_folders, tmp_path, kind):
    options = settings(flux1_relative_folders[kind], kind, tmp_path)
    sample = first_sample(options, kind)
    rounds = {"samples": [sample], "sample_after": 3, "sample_after_unit": "STEP", "epochs": 4}
    options |= {"lora_rank": 4, "lora_alpha": 4.0, "learning_rate": 0.1}
    same_bytes_after_a_stop(make_run, {**options, **rounds})


@pytest.mark.parametrize(("kind", "weights"), [("kontext", "NFLOAT_4"), ("fill", "INT_8")])
def test_quantized_base(make_run, wide_flux1_relative_folders, tmp_path, kind, weights):
    """The shown image comes in by a layer of full precision or one that is quantized, as others do."""
    options = settings(wide_flux1_relative_folders[kind], kind, tmp_path)
    options |= {"samples": [first_sample(options, kind)]}
    layers = ("x_embedder", "single_transformer_blocks.0.proj_mlp")
    quantized_base_trains(make_run(own_cache=True), options, weights, layers, checkpoints=kind == "fill")


def output_of(transformer: nn.Module) -> Tensor:
    """For inputs of the transformer's size that are always the same."""
    generator, channels = torch.Generator().manual_seed(2), transformer.config.in_channels
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(2.0), torch.arange(3.0))
    return transformer(
        hidden_states=torch.randn(2, 6, channels, generator=generator),
        encoder_hidden_states=torch.randn(2, 4, 16, generator=generator),
        pooled_projections=torch.randn(2, 16, generator=generator), timestep=torch.tensor([0.3, 0.9]),
        guidance=torch.full((2,), 3.0), img_ids=places, txt_ids=torch.zeros(4, 3), return_dict=False,
    )[0]  # fmt: skip


@every_kind
@pytest.mark.parametrize("method", ["LoRA", "DoRA on outputs"])
def test_diffusers_loads_the_file(flux1_relative_folders, flux1_relatives, tmp_path, kind, method):
    transformer, path = flux1_relatives[kind].transformer, tmp_path / "adapter.safetensors"
    adapters = disturb(AdapterSet("transformer", transformer, TrainConfig.from_dict(ADAPTER_KINDS[method])), 1)
    naming = flux1_adapter_naming(transformer)
    save_adapter(path, {"transformer": adapters}, ModelFormat.DIFFUSERS_LORA, naming, AdapterDescription())
    diffusers_computes_the_same(output_of, transformer, adapters, flux1_relative_folders[kind], path)


def test_another_transformer_is_told(flux1_folders, flux1_relative_folders, flux1_relatives, tmp_path):
    with pytest.raises(UserError, match="reads 16 channels, expected 288 as in Flux.1 Fill dev"):
        load(flux1_folders["dev"], "fill").check_layers()
    # files of dev and Kontext look the same; Fill has another first layer
    file, own = tmp_path / "dev.safetensors", flux1_relatives["kontext"].transformer
    save_file(native_tensors(own), file)
    changed = {"transformer": {"model_name": str(file)}}
    base = {"base_model_name": str(flux1_relative_folders["kontext"]), "model_type": TYPES["kontext"], **changed}
    config = TrainConfig.from_dict(base)
    assert torch.equal(family_of(config).load(config, CPU).transformer.x_embedder.weight, own.x_embedder.weight)
    config = TrainConfig.from_dict({**base, "model_type": TYPES["fill"]})
    with pytest.raises(UserError, match="is a model of FLUX_DEV_1, but model_type is FLUX_FILL_DEV_1"):
        family_of(config).load(config, CPU).components["transformer"]


def test_a_folder_of_kontext_is_not_taken_for_dev(flux1_relative_folders):
    folder = str(flux1_relative_folders["kontext"])
    config = TrainConfig.from_dict({"base_model_name": folder, "model_type": "FLUX_DEV_1"})
    with pytest.raises(UserError, match="is a model for FluxKontextPipeline, but model_type is FLUX_DEV_1"):
        family_of(config).load(config, CPU)
