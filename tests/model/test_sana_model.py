"""The Sana family against diffusers: captions, latents, predictions and samples; what is refused."""

import inspect
import json
import shutil
from functools import cache
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.model.recognize_model import find_model_type
from modules.model.SanaModel import INSTRUCTION, SanaModel
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from tests.model.family_checks import (
    CLOSE,
    each_caption_is_as_it_is_alone,
    same_picture,
    what_fills_captions_up_changes_nothing,
)

import torch

import pytest
from diffusers import SanaPipeline

CPU = torch.device("cpu")
# of different lengths, and in letters that become small ones; the last stands alone
CAPTIONS = ["a red cat", " A Blue DOG " * 7, ""]
LINES = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


def load(folder: Path, **options) -> SanaModel:
    options = {"text_encoder_sequence_length": None, **options}
    return SanaModel.load(TrainConfig.from_dict({"base_model_name": str(folder), "model_type": "SANA", **options}), CPU)


@cache
def shared(folder: Path) -> SanaModel:
    """For tests that leave the model as it is."""
    return load(folder)


@pytest.fixture
def own_folder(sana_folder, tmp_path) -> Path:
    """A copy of a base model that a test may break."""
    return Path(shutil.copytree(sana_folder, tmp_path / "base model"))


def change(path: Path, **options) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def pixels(count: int = 2, height: int = 32, width: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def encoded(peer, caption: str, length: int = 300) -> torch.Tensor:
    """`[n, d]` of the peer; what its pipeline steers away from stands alone."""
    hidden, mask, *_ = peer.encode_prompt(
        caption, do_classifier_free_guidance=False, max_sequence_length=length, complex_human_instruction=LINES
    ) if caption else peer._get_gemma_prompt_embeds("", CPU, torch.float32, max_sequence_length=length)  # fmt: skip
    return hidden[0][mask[0].bool()]


def test_the_family_serves_its_type(sana_folder):
    assert family_of(TrainConfig.from_dict({"model_type": "SANA"})) is SanaModel
    assert find_model_type(TrainConfig.from_dict({"base_model_name": str(sana_folder)})) == "SANA"
    assert "\n".join(LINES) == INSTRUCTION


@torch.no_grad()
@pytest.mark.parametrize("length", [None, 8])
def test_captions_are_those_of_the_peer(sana_folder, sana_pipeline, length):
    model = load(sana_folder, text_encoder_sequence_length=length)
    found = model.encode_captions(CAPTIONS)
    # the mark, the last word of the instruction, and the caption; and the mark alone
    assert found["mask"].sum(dim=1).tolist() == [5, length or 23, 1]
    for hidden, mask, caption in zip(found["hidden"], found["mask"], CAPTIONS, strict=True):
        expected = encoded(sana_pipeline, caption, length or 300)
        torch.testing.assert_close(hidden[mask], expected, **CLOSE)
        assert not hidden[~mask].any()
    assert (found["hidden"][0, 2:5] - found["hidden"][1, 2:5]).abs().max() > 0.1
    each_caption_is_as_it_is_alone(model, found, CAPTIONS)


def test_what_captions_may_have(sana_folder):
    model = shared(sana_folder)
    assert model.text_limits() == {"text_encoder": 298}
    # the option's default is that of other families
    assert load(sana_folder, text_encoder_sequence_length=512).text_limits() == {"text_encoder": 298}
    assert load(sana_folder, text_encoder_sequence_length=20).text_limits() == {"text_encoder": 18}
    assert model.count_tokens("text_encoder", CAPTIONS) == [3, 21, 0]
    assert model.read_more("text_encoder", 30) == "text_encoder_sequence_length to 32"
    assert model.read_more("text_encoder", 299) == ""


@torch.no_grad()
def test_latents_are_those_of_the_peer_and_decode(sana_folder, sana_pipeline):
    model, vae = shared(sana_folder), sana_pipeline.vae
    assert model.image_grid == 2
    found, raw = model.encode_images(pixels()), vae.encode(pixels()).latent
    assert found.shape == (2, 4, 16, 32) and found.dtype == torch.float32
    torch.testing.assert_close(found, raw * 0.41407, **CLOSE)
    torch.testing.assert_close(model.decode_images(found), vae.decode(raw).sample, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_prediction_against_the_peer(sana_folder, sana_pipeline, shift):
    model = load(sana_folder, timestep_distribution="LOGIT_NORMAL", timestep_shift=shift)
    clean = model.encode_images(pixels())
    prediction = model.predict(clean, model.encode_captions(CAPTIONS[:2]), torch.Generator().manual_seed(1))
    # first the noise levels are drawn, then the noise
    generator = torch.Generator().manual_seed(1)
    sigmas = torch.sigmoid(torch.special.ndtri(torch.rand(2, generator=generator, dtype=torch.float64)))
    noise = torch.randn(2, 4, 16, 32, generator=generator)
    level = prediction.sigma
    # as the scheduler shifts its own levels
    torch.testing.assert_close(level.double(), shift * sigmas / (1 + (shift - 1) * sigmas), atol=1e-6, rtol=0)
    noisy = (1 - level.view(2, 1, 1, 1)) * clean + level.view(2, 1, 1, 1) * noise
    hidden, mask, *_ = sana_pipeline.encode_prompt(
        CAPTIONS[:2], do_classifier_free_guidance=False, complex_human_instruction=LINES
    )
    # as the pipeline's loop does, with all tokens, of which most are hidden
    output = sana_pipeline.transformer(
        noisy, encoder_hidden_states=hidden, encoder_attention_mask=mask, timestep=1000 * level, return_dict=False
    )[0]
    torch.testing.assert_close(prediction.predicted, output, **CLOSE)
    torch.testing.assert_close(prediction.target, noise - clean, **CLOSE)
    # what the scheduler makes of the target, at its own noise levels, are the clean latents
    scheduler = sana_pipeline.scheduler
    scheduler.set_timesteps(4)
    scheduler._step_index, sigma = 2, scheduler.sigmas[2]
    sample = (1 - sigma) * clean[0] + sigma * noise[0]
    torch.testing.assert_close(scheduler.convert_model_output(prediction.target[0], sample=sample), clean[0], **CLOSE)


@torch.no_grad()
def test_what_fills_captions_up_changes_nothing(sana_folder):
    what_fills_captions_up_changes_nothing(shared(sana_folder), pixels(1), CAPTIONS[:2])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_samples_equal_the_plain_pipeline(sana_folder, sana_pipeline, scale):
    """With prompts of different lengths, of which one stands behind the instruction."""
    model, steps = shared(sana_folder), []
    sample = SampleConfig(
        prompt="a Red cat", negative_prompt="blue", width=64, height=33, diffusion_steps=3, cfg_scale=scale,
        text_encoder_1_sequence_length=5,
    )  # fmt: skip
    found = model.sample(sample, 5, lambda k, n: steps.append((k, n)))
    expected = sana_pipeline(
        prompt="a Red cat", negative_prompt="blue", height=32, width=64, num_inference_steps=3, guidance_scale=scale,
        generator=torch.Generator().manual_seed(5), use_resolution_binning=False, clean_caption=False,
        max_sequence_length=5,
    ).images[0]  # fmt: skip
    assert found.size == expected.size == (64, 32) and steps == [(1, 3), (2, 3), (3, 3)]
    same_picture(found, expected)


def test_fingerprints_follow_what_they_stand_for(own_folder):
    before = load(own_folder).text_fingerprint(), load(own_folder).image_fingerprint()
    assert load(own_folder, text_encoder_sequence_length=20).text_fingerprint() != before[0]
    change(own_folder / "vae" / "config.json", scaling_factor=0.5)
    changed = load(own_folder)
    assert changed.image_fingerprint() != before[1] and changed.text_fingerprint() == before[0]


def test_gradient_checkpointing_keeps_the_mask(sana_folder):
    gradients = []
    for enabled in (False, True):
        model = load(sana_folder)
        model.set_gradient_checkpointing("transformer", enabled)
        weight = model.transformer.caption_projection.linear_1.weight.requires_grad_()
        texts = model.encode_captions(CAPTIONS[:2])
        predicted = model.predict(torch.ones(2, 4, 4, 4), texts, torch.Generator().manual_seed(1)).predicted
        gradients.append(torch.autograd.grad(predicted.square().sum(), weight)[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


def test_what_is_refused(own_folder, tmp_path):
    with pytest.raises(UserError, match="SANA has no shift that depends on an image's size"):
        load(own_folder, dynamic_timestep_shifting=True)
    change(own_folder / "transformer" / "config.json", guidance_embeds=True)
    with pytest.raises(UserError, match="is told its guidance, as in Sana Sprint"):
        load(own_folder).check_layers()
    change(own_folder / "scheduler" / "scheduler_config.json", use_flow_sigmas=False)
    with pytest.raises(UserError, match="neither use_flow_sigmas nor shift"):
        load(own_folder)
    path = tmp_path / "Sana_1600M_1024px.pth"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"has no tokenizer.*of Sana here.*transformer\.model_name"):
        load(path)
