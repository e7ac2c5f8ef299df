"""The Flux.2 family against diffusers: captions, latents, noisy inputs, predictions, samples; broken base models."""

import json
import math
import shutil
from functools import cache
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.model.Flux2Model import Flux2Model
from modules.trainer.loss import image_losses
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from tests.model.family_checks import same_picture

import torch

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

CPU = torch.device("cpu")
CAPTIONS = ["a red cat", "a blue [IMG] dog", ""]
# float32 through some forty layers
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def load(folder: Path, **options) -> Flux2Model:
    options = {"text_encoder_sequence_length": 48, **options}
    config = TrainConfig.from_dict({"base_model_name": str(folder), "model_type": "FLUX_2", **options})
    return Flux2Model.load(config, CPU)


@cache
def shared(folder: Path) -> Flux2Model:
    """For tests that leave the model as it is."""
    return load(folder)


@pytest.fixture(params=["dev", "klein"])
def variant(request) -> str:
    return request.param


@pytest.fixture
def folder(flux2_folders, variant) -> Path:
    return flux2_folders[variant]


@pytest.fixture
def peer(flux2_pipelines, variant):
    return flux2_pipelines[variant]


@pytest.fixture
def own_folder(flux2_folders, tmp_path) -> Path:
    """A copy of a base model that a test may break."""
    return Path(shutil.copytree(flux2_folders["klein"], tmp_path / "base model"))


def pixels(count: int = 2, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def run(model: Flux2Model, monkeypatch, conditions: dict, latents: torch.Tensor):
    """One prediction; returns it with the arguments that the transformer saw."""
    seen, forward = [], model.transformer.forward

    def watch(**arguments):
        seen.append(arguments)
        return forward(**arguments)

    monkeypatch.setattr(model.transformer, "forward", watch)
    with torch.no_grad():
        prediction = model.predict(latents, conditions, torch.Generator().manual_seed(1))
    return prediction, seen[0]


def test_the_family_serves_its_type():
    assert family_of(TrainConfig.from_dict({"model_type": "FLUX_2"})) is Flux2Model


@pytest.mark.parametrize("length", [20, 48])
def test_captions_are_those_of_the_peer(folder, peer, variant, length):
    model = load(folder, text_encoder_sequence_length=length)
    expected, _ = peer.encode_prompt(CAPTIONS, max_sequence_length=length)
    found = model.encode_captions(CAPTIONS)["hidden"]
    assert found.shape == (3, length, 48)
    torch.testing.assert_close(found, expected, **CLOSE)
    # captions differ, so that the agreement says something; dev's system message alone has more than 20 tokens
    assert ((found[0] - found[1]).abs().max() > 0.1) == (length == 48 or variant == "klein")


def test_captions_have_the_encoders_format(folder):
    model = load(folder, text_encoder={"weight_dtype": "BFLOAT_16"})
    assert model.encode_captions(CAPTIONS[:1])["hidden"].dtype == torch.bfloat16


def test_latents_are_those_of_the_peer_and_decode(folder, peer):
    model = shared(folder)
    assert model.image_grid == 16
    with torch.no_grad():
        expected = peer._encode_vae_image(pixels(), None)
    found = model.encode_images(pixels())
    assert found.shape == (2, 16, 2, 3) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, **CLOSE)
    with torch.no_grad():
        decoded = peer.vae.decode(peer.vae.encode(pixels()).latent_dist.mode()).sample
    torch.testing.assert_close(model.decode_images(found), decoded, **CLOSE)


@pytest.mark.parametrize("dynamic", [False, True])
def test_prediction_against_the_peer(folder, peer, variant, monkeypatch, dynamic):
    options = {"transformer": {"guidance_scale": 3.5}, "dynamic_timestep_shifting": dynamic}
    model = load(folder, timestep_distribution="LOGIT_NORMAL", **options)
    latents = model.encode_images(pixels())
    prediction, seen = run(model, monkeypatch, model.encode_captions(CAPTIONS[:2]), latents)
    # first the noise levels are drawn, then the noise
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(2, generator=generator, dtype=torch.float64)
    sigmas = torch.sigmoid(torch.special.ndtri(uniform))
    noise = torch.randn(2, 16, 2, 3, generator=generator)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(peer.scheduler.config)
    if dynamic:
        # the pipeline's own rule, for many steps; its constants are rounded to eight digits
        mu = compute_empirical_mu(6, 200)
        sigmas = torch.from_numpy(scheduler.time_shift(mu, 1.0, sigmas.numpy()))
    torch.testing.assert_close(prediction.sigma.double(), sigmas, atol=1e-5 if dynamic else 1e-6, rtol=0)
    level = prediction.sigma
    # the scheduler looks its noise levels up by timestep
    scheduler.sigmas, scheduler.timesteps = level, 1000 * level
    with torch.no_grad():
        clean = peer._encode_vae_image(pixels(), None)
        noisy = scheduler.scale_noise(clean, 1000 * level, noise)
        hidden, text_ids = peer.encode_prompt(CAPTIONS[:2], max_sequence_length=48)
        _, ids = peer.prepare_latents(2, 4, 32, 48, torch.float32, CPU, None, latents=noisy)
        expected = peer.transformer(
            hidden_states=peer._pack_latents(noisy), encoder_hidden_states=hidden, timestep=level, img_ids=ids,
            txt_ids=text_ids, guidance=torch.full((2,), 3.5) if variant == "dev" else None, return_dict=False,
        )[0]  # fmt: skip
    torch.testing.assert_close(seen["hidden_states"], peer._pack_latents(noisy), **CLOSE)
    assert torch.equal(seen["img_ids"], ids[0]) and torch.equal(seen["txt_ids"], text_ids[0])
    torch.testing.assert_close(prediction.predicted, peer._unpack_latents_with_ids(expected, ids), **CLOSE)
    torch.testing.assert_close(prediction.target, noise - clean, **CLOSE)
    # the scheduler's step to σ = 0 along the target gives the clean latents
    torch.testing.assert_close(noisy - level[:, None, None, None] * prediction.target, clean, **CLOSE)
    assert prediction.snr is None and not prediction.velocity


def test_guidance_is_told_to_models_that_know_it(folder, variant, monkeypatch):
    outputs = []
    for scale in (1.0, 6.0):
        model = load(folder, transformer={"guidance_scale": scale})
        conditions = {"hidden": torch.zeros(1, 4, 48)}
        prediction, seen = run(model, monkeypatch, conditions, torch.zeros(1, 16, 2, 2))
        outputs.append(prediction.predicted)
        assert seen["guidance"] is None if variant == "klein" else seen["guidance"].tolist() == [scale]
    assert torch.equal(*outputs) == (variant == "klein")


def test_dynamic_shift_follows_the_scheduler(folder, peer):
    model = shared(folder)
    for tokens in (256, 1024, 4096, 9000):
        # the pipeline's rule for many steps, which it also takes for any number of steps above 4,300 tokens
        mu = compute_empirical_mu(tokens, 200)
        # its constants have eight digits, which 9,000 tokens multiply
        assert math.log(model.shift_of_size(tokens)) == pytest.approx(mu, abs=1e-4)
    assert model.shift_of_size(4096) > 1.5 * model.shift_of_size(256)


def test_offset_noise_is_part_of_the_target(folder, monkeypatch):
    """The mixed-in noise is what the target leads to; a perturbation is not."""
    latents, conditions = torch.randn(2, 16, 2, 2), {"hidden": torch.zeros(2, 4, 48)}
    for options, exact in (({"offset_noise_weight": 0.5}, True), ({"perturbation_noise_weight": 0.5}, False)):
        prediction, seen = run(load(folder, **options), monkeypatch, conditions, latents)
        share = prediction.sigma[:, None, None]
        reached = seen["hidden_states"] + (1 - share) * prediction.target.flatten(2).transpose(1, 2)
        clean_and_noise = (prediction.target + latents).flatten(2).transpose(1, 2)
        assert torch.allclose(reached, clean_and_noise, atol=1e-5) == exact
    assert (prediction.target.mean(dim=(2, 3)).std() < 1.0) and torch.isfinite(prediction.predicted).all()


def test_noise_levels_stay_in_their_range(folder, monkeypatch):
    model = load(folder, min_noising_strength=0.4, max_noising_strength=0.5)
    prediction, _ = run(model, monkeypatch, {"hidden": torch.zeros(64, 1, 48)}, torch.zeros(64, 16, 1, 1))
    assert 0.4 <= prediction.sigma.min() and prediction.sigma.max() <= 0.5
    assert torch.equal(prediction.timesteps, 1000 * prediction.sigma)


def test_sigma_weight_and_mask_work_on_packed_latents(folder, monkeypatch):
    model = shared(folder)
    prediction, _ = run(model, monkeypatch, {"hidden": torch.zeros(2, 4, 48)}, torch.randn(2, 16, 2, 3))
    mask = torch.tensor([1.0, 0.0, 1.0]).expand(2, 1, 2, 3)
    config = TrainConfig.from_dict({"loss_weight_fn": "SIGMA", "masked_training": True})
    found = image_losses(config, prediction, torch.ones(2), mask)
    error = (prediction.predicted - prediction.target).square()[..., [0, 2]]
    # the mean is over masked latents, too
    torch.testing.assert_close(found, prediction.sigma * error.mean(dim=(1, 2, 3)) * 2 / 3)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_samples_equal_the_plain_pipeline(folder, peer, variant, scale):
    model, steps = shared(folder), []
    sample = SampleConfig(
        prompt="a red cat", negative_prompt="", width=50, height=32, diffusion_steps=3, cfg_scale=scale, seed=5
    )
    found = model.sample(sample, 5, lambda k, n: steps.append((k, n)))
    expected = peer(
        prompt="a red cat", height=32, width=48, num_inference_steps=3, guidance_scale=scale, max_sequence_length=48,
        generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert found.size == expected.size == (48, 32) and steps == [(1, 3), (2, 3), (3, 3)]
    same_picture(found, expected)


def test_a_negative_prompt_steers_klein(flux2_folders):
    model = shared(flux2_folders["klein"])
    images = [
        np.asarray(model.sample(SampleConfig(prompt="a red cat", negative_prompt=negative, width=32, height=32,
                                             diffusion_steps=2, cfg_scale=6.0), 1, lambda *_: None), int)
        for negative in ("", "blue dog")
    ]  # fmt: skip
    assert np.abs(images[0] - images[1]).max() > 1


def test_samples_with_a_vae_of_another_format(folder):
    model = load(folder, transformer={"weight_dtype": "BFLOAT_16"}, text_encoder={"weight_dtype": "BFLOAT_16"})
    sample = SampleConfig(prompt="a red cat", width=32, height=32, diffusion_steps=2)
    assert model.sample(sample, 1, lambda *_: None).size == (32, 32)
    assert model.transformer.dtype == torch.bfloat16 and model.vae.dtype == torch.float32


def test_text_encoder_is_freed_before_the_transformer_comes(folder):
    model = load(folder)
    sample = SampleConfig(prompt="a red cat", width=32, height=32, diffusion_steps=1)
    model.prompts(sample)
    model.encode_images(pixels())
    assert set(model.components.loaded) == {"text_encoder", "vae"}
    model.rest()
    assert "text_encoder" not in model.components.loaded
    model.sample(sample, 1, lambda *_: None)
    assert "text_encoder" not in model.components.loaded


def test_fingerprints_follow_what_they_stand_for(folder, own_folder):
    model = load(own_folder)
    before = model.text_fingerprint(), model.image_fingerprint()
    assert (load(own_folder).text_fingerprint(), load(own_folder).image_fingerprint()) == before
    assert load(own_folder, text_encoder_sequence_length=20).text_fingerprint() != before[0]
    config = own_folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"batch_norm_eps": 0.5}))
    assert load(own_folder).image_fingerprint() != before[1]
    chat = own_folder / "tokenizer" / "chat_template.jinja"
    chat.write_text(chat.read_text() + " please")
    assert load(own_folder).text_fingerprint() != before[0]


def test_gradient_checkpointing_gives_the_same_gradients(folder):
    gradients = []
    for enabled in (False, True):
        model = load(folder)
        model.set_gradient_checkpointing("transformer", enabled)
        assert model.transformer.gradient_checkpointing == enabled
        weight = model.transformer.x_embedder.weight.requires_grad_(True)
        prediction = model.predict(
            torch.ones(1, 16, 2, 2), {"hidden": torch.ones(1, 4, 48)}, torch.Generator().manual_seed(1)
        )
        (prediction.predicted - prediction.target).square().mean().backward()
        gradients.append(weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


# --- what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"force_v_prediction": True}, "force_v_prediction: has no meaning for FLUX_2"),
        ({"rescale_noise_scheduler_to_zero_terminal_snr": True}, "has no meaning for FLUX_2"),
        ({"generalized_offset_noise": True}, "has no meaning for FLUX_2"),
        ({"text_encoder_layer_skip": 1}, "has no meaning for FLUX_2"),
        ({"loss_weight_fn": "MIN_SNR_GAMMA"}, "loss_weight_fn: MIN_SNR_GAMMA.*expected CONSTANT or SIGMA"),
    ],
)
def test_options_without_meaning_are_named(flux2_folders, options, words):
    with pytest.raises(UserError, match=words):
        load(flux2_folders["klein"], **options)


def test_dynamic_shift_is_refused_where_it_is_not_defined(small_folder):
    config = TrainConfig(base_model_name=str(small_folder), dynamic_timestep_shifting=True)
    with pytest.raises(UserError, match=r"dynamic_timestep_shifting: STABLE_DIFFUSION_15.*timestep_shift"):
        family_of(config).load(config, CPU)


def test_a_file_as_base_model_is_explained(tmp_path):
    path = tmp_path / "flux2.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"holds the transformer alone.*transformer\.model_name"):
        load(path)


def test_a_folder_of_another_family_is_named(small_folder, own_folder):
    with pytest.raises(UserError, match="incomplete; missing folders: transformer"):
        load(small_folder)
    index = own_folder / "model_index.json"
    index.write_text(index.read_text().replace("Qwen3ForCausalLM", "T5EncoderModel"))
    with pytest.raises(UserError, match=r"T5EncoderModel.*expected .*Mistral3.* or .*Qwen3"):
        load(own_folder)


def test_a_text_encoder_that_is_too_short(own_folder):
    path = own_folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    config |= {"num_hidden_layers": 20, "layer_types": config["layer_types"][:20]}
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"text encoder has 20 layers.*9, 18, 27"):
        load(own_folder).encode_captions(["a cat"])


def test_a_scheduler_of_another_kind(own_folder):
    path = own_folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDPMScheduler"}))
    with pytest.raises(UserError, match="no flow-matching scheduler"):
        load(own_folder)
