"""The Chroma family against diffusers: captions and their mask, noisy inputs, predictions, samples; what is refused."""

import json
import shutil
from functools import cache
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.model.ChromaModel import ChromaModel
from modules.trainer.CaptionReader import CaptionReader
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from tests.model.family_checks import same_picture

import torch

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.chroma.pipeline_chroma import calculate_shift

CPU = torch.device("cpu")
CAPTIONS = ["a red cat", "a blue dog " * 7, ""]
# of each and its end, and one that fills it up
SEEN = [5, 23, 2]
# float32 through some forty layers
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def load(folder: Path, **options) -> ChromaModel:
    options = {"text_encoder_sequence_length": 24, **options}
    return ChromaModel.load(
        TrainConfig.from_dict({"base_model_name": str(folder), "model_type": "CHROMA_1", **options}), CPU
    )


@cache
def shared(folder: Path) -> ChromaModel:
    """For tests that leave the model as it is."""
    return load(folder)


@pytest.fixture
def own_folder(chroma_folder, tmp_path) -> Path:
    """A copy of a base model that a test may break."""
    return Path(shutil.copytree(chroma_folder, tmp_path / "base model"))


def pixels(count: int = 2, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def packed(peer, latents: torch.Tensor) -> torch.Tensor:
    return peer._pack_latents(latents, *latents.shape)


def clean_latents(peer) -> torch.Tensor:
    with torch.no_grad():
        latents = peer.vae.encode(pixels()).latent_dist.mode()
    return (latents - peer.vae.config.shift_factor) * peer.vae.config.scaling_factor


def encoded(peer, captions: list[str], length: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the peer, with a mask that hides what it is said to hide."""
    hidden, _, mask, *_ = peer.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=length)
    return hidden, mask.bool()


def test_the_family_serves_its_type():
    assert family_of(TrainConfig.from_dict({"model_type": "CHROMA_1"})) is ChromaModel


@pytest.mark.parametrize(("length", "seen"), [(24, SEEN), (12, [5, 12, 2]), (None, SEEN)])
def test_captions_are_those_of_the_peer(chroma_folder, chroma_pipeline, length, seen):
    model = load(chroma_folder, text_encoder_sequence_length=length)
    hidden, mask = encoded(chroma_pipeline, CAPTIONS, length or 512)
    found = model.encode_captions(CAPTIONS)
    assert found["mask"].sum(dim=1).tolist() == seen == mask.sum(dim=1).tolist()
    assert found["hidden"].shape == (3, max(seen), 16) and found["mask"].shape == (3, max(seen))
    for own, own_mask, peer, peer_mask in zip(found["hidden"], found["mask"], hidden, mask, strict=True):
        torch.testing.assert_close(own[own_mask], peer[peer_mask], **CLOSE)
        assert not own[~own_mask].any()
    # captions differ, so that the agreement says something
    assert (hidden[0, :2] - hidden[1, :2]).abs().max() > 0.1


def test_a_batch_of_captions_is_each_of_them_alone(chroma_folder):
    model = shared(chroma_folder)
    together = model.encode_captions(CAPTIONS)
    for place, caption in enumerate(CAPTIONS):
        alone, n = model.encode_captions([caption]), SEEN[place]
        assert alone["hidden"].shape[1] == n and alone["mask"].all()
        torch.testing.assert_close(together["hidden"][place, :n], alone["hidden"][0], **CLOSE)


def test_what_captions_may_have(chroma_folder):
    model = shared(chroma_folder)
    assert model.text_limits() == {"text_encoder": 23}
    assert load(chroma_folder, text_encoder_sequence_length=None).text_limits() == {"text_encoder": 511}
    assert model.count_tokens("text_encoder", CAPTIONS) == [3, 21, 0]
    assert model.read_more("text_encoder", 600) == "text_encoder_sequence_length to 601"


def test_latents_are_those_of_the_peer_and_decode(chroma_folder, chroma_pipeline):
    model, vae = shared(chroma_folder), chroma_pipeline.vae
    assert model.image_grid == 16
    found = model.encode_images(pixels())
    expected = packed(chroma_pipeline, clean_latents(chroma_pipeline))
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, **CLOSE)
    with torch.no_grad():
        decoded = vae.decode(vae.encode(pixels()).latent_dist.mode()).sample
    torch.testing.assert_close(model.decode_images(found), decoded, **CLOSE)


def predict(model: ChromaModel, captions: list[str], seed: int = 1):
    return model.predict(
        model.encode_images(pixels()), model.encode_captions(captions), torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("captions", [CAPTIONS[:2], ["a red cat", "a blue dog"]], ids=["uneven", "even"])
def test_prediction_against_the_peer(chroma_folder, chroma_pipeline, monkeypatch, captions, dynamic):
    peer, options = chroma_pipeline, {"dynamic_timestep_shifting": dynamic}
    model = load(chroma_folder, timestep_distribution="LOGIT_NORMAL", **options)
    seen, forward = [], model.transformer.forward

    def watch(**arguments):
        seen.append(arguments)
        return forward(**arguments)

    monkeypatch.setattr(model.transformer, "forward", watch)
    with torch.no_grad():
        prediction = predict(model, captions)
    # first the noise levels are drawn, then the noise
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(2, generator=generator, dtype=torch.float64)
    sigmas = torch.sigmoid(torch.special.ndtri(uniform))
    noise = torch.randn(2, 16, 2, 3, generator=generator)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(peer.scheduler.config)
    if dynamic:
        mu = calculate_shift(6, 256, 4096, 0.5, 1.15)
        sigmas = torch.from_numpy(scheduler.time_shift(mu, 1.0, sigmas.numpy()))
    level = prediction.sigma
    torch.testing.assert_close(level.double(), sigmas, atol=1e-6, rtol=0)
    # the scheduler looks its noise levels up by timestep
    scheduler.sigmas, scheduler.timesteps = level, 1000 * level
    clean, noise_tokens = packed(peer, clean_latents(peer)), noise.flatten(2).transpose(1, 2)
    noisy = scheduler.scale_noise(clean, 1000 * level, noise_tokens)
    # the peer keeps all 24 tokens, and hides those that fill captions up
    hidden, mask = encoded(peer, captions)
    ids = peer._prepare_latent_image_ids(2, 2, 3, CPU, torch.float32)
    with torch.no_grad():
        expected = peer.transformer(
            hidden_states=noisy, encoder_hidden_states=hidden, timestep=level, img_ids=ids, txt_ids=torch.zeros(24, 3),
            attention_mask=peer._prepare_attention_mask(2, 6, torch.float32, mask), return_dict=False,
        )[0]  # fmt: skip
        without = peer.transformer(
            hidden_states=noisy, encoder_hidden_states=hidden, timestep=level, img_ids=ids, txt_ids=torch.zeros(24, 3),
            return_dict=False,
        )[0]  # fmt: skip
    torch.testing.assert_close(seen[0]["hidden_states"], noisy, **CLOSE)
    assert torch.equal(seen[0]["img_ids"], ids) and not seen[0]["txt_ids"].any()
    # captions of one length need no mask
    assert (seen[0]["attention_mask"] is None) == (captions != CAPTIONS[:2])
    torch.testing.assert_close(prediction.predicted.flatten(2).transpose(1, 2), expected, **CLOSE)
    assert (without - expected).abs().max() > 1e-2
    torch.testing.assert_close(prediction.target.flatten(2).transpose(1, 2), noise_tokens - clean, **CLOSE)
    # the scheduler's step to σ = 0 along the target gives the clean latents
    target = prediction.target.flatten(2).transpose(1, 2)
    torch.testing.assert_close(noisy - level[:, None, None] * target, clean, **CLOSE)


def test_a_padded_caption_changes_nothing(chroma_folder):
    """In a batch, as alone: also the gradients are those of each image by itself."""
    model = shared(chroma_folder)
    texts = model.encode_captions(CAPTIONS[:2])
    noised = torch.randn(2, 16, 2, 3, generator=torch.Generator().manual_seed(5)).requires_grad_()
    level = torch.tensor([0.3, 0.9])
    together = model.call_transformer(noised, level, texts)
    (gradient,) = torch.autograd.grad(together.square().sum(), noised)
    assert torch.isfinite(gradient).all()
    for place, n in enumerate(SEEN[:2]):
        row, own = slice(place, place + 1), {name: value[place : place + 1, :n] for name, value in texts.items()}
        alone = model.call_transformer(noised[row], level[row], own)
        torch.testing.assert_close(together[row], alone, **CLOSE)
        (expected,) = torch.autograd.grad(alone.square().sum(), noised)
        torch.testing.assert_close(gradient[row], expected[row], atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_keeps_the_mask(chroma_folder):
    """diffusers leaves it out of single blocks there."""
    plain, saving = load(chroma_folder), load(chroma_folder)
    saving.set_gradient_checkpointing("transformer", True)
    gradients = []
    for model in (plain, saving):
        weight = model.transformer.x_embedder.weight.requires_grad_()
        prediction = predict(model, CAPTIONS[:2])
        gradients.append(torch.autograd.grad(prediction.predicted.square().sum(), weight)[0])
        # another batch meanwhile, as with gradient accumulation: the first one's graph keeps its own mask
        first = predict(model, CAPTIONS[:2]).predicted.square().sum()
        predict(model, ["a red cat", "a blue dog"])
        gradients.append(torch.autograd.grad(first, weight)[0])
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], **CLOSE)


@pytest.mark.parametrize(("scale", "schedule"), [(3.0, {}), (1.0, {}), (3.0, {"shift": 1.0, "use_beta_sigmas": True})])
def test_samples_equal_the_plain_pipeline(own_folder, chroma_pipeline, scale, schedule):
    """Of HD, without guidance, and of Base, whose noise levels in samples are spaced by a beta distribution."""
    path = own_folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | schedule))
    model, steps = load(own_folder), []
    sample = SampleConfig(
        prompt="a red cat", negative_prompt="blue", width=50, height=32, diffusion_steps=3, cfg_scale=scale
    )
    found = model.sample(sample, 5, lambda k, n: steps.append((k, n)))
    peer = type(chroma_pipeline)(**chroma_pipeline.components)
    peer.scheduler = FlowMatchEulerDiscreteScheduler.from_config(chroma_pipeline.scheduler.config, **schedule)
    peer.set_progress_bar_config(disable=True)
    texts = {}
    for name, text in (("", "a red cat"), ("negative_", "blue")):
        texts[f"{name}prompt_embeds"], texts[f"{name}prompt_attention_mask"] = encoded(peer, [text])
    expected = peer(
        **texts, height=32, width=48, num_inference_steps=3, guidance_scale=scale,
        generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert found.size == expected.size == (48, 32) and steps == [(1, 3), (2, 3), (3, 3)]
    same_picture(found, expected)


def test_a_sample_s_own_length_counts(chroma_folder):
    model = shared(chroma_folder)
    for length, tokens in ((None, 23), (6, 6)):
        sample = SampleConfig(prompt=CAPTIONS[1], negative_prompt="blue", text_encoder_1_sequence_length=length)
        prompts = model.encode_prompts(sample)
        assert {name: tuple(tensor.shape[:2]) for name, tensor in prompts.items()} == {
            "prompt_embeds": (1, tokens), "prompt_attention_mask": (1, tokens),
            "negative_prompt_embeds": (1, 3), "negative_prompt_attention_mask": (1, 3),
        }  # fmt: skip


def test_samples_with_a_vae_of_another_format(chroma_folder):
    halves = {name: {"weight_dtype": "BFLOAT_16"} for name in ("transformer", "text_encoder")}
    model = load(chroma_folder, **halves)
    sample = SampleConfig(prompt="a red cat", width=32, height=32, diffusion_steps=2)
    assert model.sample(sample, 1, lambda *_: None).size == (32, 32)
    assert model.transformer.dtype == torch.bfloat16 and model.vae.dtype == torch.float32


def test_the_text_encoder_is_freed_before_the_transformer_comes(chroma_folder):
    model = load(chroma_folder)
    sample = SampleConfig(prompt="a red cat", width=32, height=32, diffusion_steps=1)
    model.prompts(sample)
    model.encode_images(pixels())
    assert set(model.components.loaded) == {"text_encoder", "vae"}
    model.rest()
    model.sample(sample, 1, lambda *_: None)
    assert "text_encoder" not in model.components.loaded


def test_fingerprints_follow_what_they_stand_for(own_folder):
    model = load(own_folder)
    before = model.text_fingerprint(), model.image_fingerprint()
    assert (load(own_folder).text_fingerprint(), load(own_folder).image_fingerprint()) == before
    assert load(own_folder, text_encoder_sequence_length=20).text_fingerprint() != before[0]
    config = own_folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"shift_factor": 0.5}))
    assert load(own_folder).image_fingerprint() != before[1]


def test_a_file_as_base_model_is_explained(tmp_path):
    path = tmp_path / "chroma.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no tokenizer of T5.*of Chroma here.*model_name of text_encoder and vae as"):
        load(path)


@pytest.mark.parametrize("kind", ["CHROMA_1", "Z_IMAGE"])
def test_a_kernel_to_which_masks_hide_nothing_is_refused(kind):
    """diffusers turns masks of four axes into 0 and 1 for xformers, which adds them."""
    options = {"model_type": kind, "attention_mechanism": "XFORMERS"}
    for batch_size, refused in ((1, []), (2, ["attention_mechanism"])):
        config = TrainConfig.from_dict({**options, "batch_size": batch_size})
        assert [problem.path for problem in family_of(config).check_config(config)] == refused
    assert not family_of(config).check_config(config.model_copy(update={"attention_mechanism": "SDP"}))


def test_captions_are_counted_before_a_run(chroma_folder):
    config = shared(chroma_folder).config
    assert [(one.tokens, one.limit) for one in CaptionReader(config).lengths(CAPTIONS).values()] == [
        (3, 23), (21, 23), (0, 23),
    ]  # fmt: skip
