"""HiDream against diffusers: captions, latents, predictions, experts, samples; what is refused."""

import json
import shutil
from functools import cache
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.model.hidream_experts import make_trainable
from modules.model.HiDreamModel import HiDreamModel
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from tests.model.family_checks import CLOSE, same_picture, target_leads_to_the_clean_latents

import torch

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImagePipeline, HiDreamImageTransformer2DModel

CPU = torch.device("cpu")
CAPTIONS = ["a red cat", "a blue dog", ""]
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
LENGTH = 20
EXPERT = "double_stream_blocks.0.block.ff_i.experts.1.w2"


def load(folder: Path, **options) -> HiDreamModel:
    options = {"text_encoder_3_sequence_length": LENGTH, "model_type": "HI_DREAM_FULL", **options}
    return HiDreamModel.load(TrainConfig.from_dict({"base_model_name": str(folder), **options}), CPU)


@cache
def shared(folder: Path) -> HiDreamModel:
    """For tests that leave the model as it is."""
    return load(folder)


@pytest.fixture(scope="module")
def peer(hidream_pipeline) -> HiDreamImagePipeline:
    """With the solver of this trainer."""
    components = {**hidream_pipeline.components, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}
    pipeline = HiDreamImagePipeline(**components)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.default_sample_size = 4
    return pipeline


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pixels(count: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def clean_latents(peer, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        latents = peer.vae.encode(images).latent_dist.mode()
    return (latents - peer.vae.config.shift_factor) * peer.vae.config.scaling_factor


@torch.no_grad()
def prompts_of(peer, captions: list[str], length: int = LENGTH):
    """T5's states, those of all layers of Llama, and the CLIPs' summaries."""
    found = peer.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=length)
    return found[0], found[2], found[4]


def test_the_family_serves_its_type():
    assert family_of(TrainConfig.from_dict({"model_type": "HI_DREAM_FULL"})) is HiDreamModel


@pytest.mark.parametrize("length", [4, LENGTH])
def test_captions_are_those_of_the_peer(hidream_folder, peer, length):
    hidden, states, pooled = prompts_of(peer, CAPTIONS, length)
    model = load(hidream_folder, text_encoder_3_sequence_length=length)
    found = model.encode_captions(CAPTIONS)
    assert model.hidden_layers == (0, 2) and found["states"].shape == (3, 2, length, 16)
    torch.testing.assert_close(found["hidden"], hidden, **CLOSE)
    torch.testing.assert_close(found["pooled"], pooled, **CLOSE)
    # those layers that some block reads, at what fills captions up as well
    torch.testing.assert_close(found["states"], states[[0, 2]].transpose(0, 1), **CLOSE)
    # captions differ in what each encoder says of them, and so do the layers
    for part in (hidden, found["states"], pooled[:, :16], pooled[:, 16:]):
        assert (part[0] - part[1]).abs().max() > 0.05
    assert (found["states"][:, 0] - found["states"][:, 1]).abs().max() > 0.05


def test_captions_have_as_many_tokens_as_the_published_models(hidream_folder):
    model = load(hidream_folder, text_encoder_3_sequence_length=None)
    found = model.encode_captions(["a red cat"])
    assert found["hidden"].shape[1] == found["states"].shape[2] == 128
    assert model.text_limits() == {"text_encoder_3": 127, "text_encoder_4": 127}
    assert model.count_tokens("text_encoder_3", ["a red cat", ""]) == [3, 0]
    assert model.count_tokens("text_encoder_4", ["a red cat", ""]) == [3, 0]
    assert model.read_more("text_encoder_4", 200) == "text_encoder_3_sequence_length to 201"


def test_llama_and_its_tokenizer_from_elsewhere(own_hidream_folder, peer):
    """As published: the base model has neither, and one folder has both."""
    llama = own_hidream_folder.with_name("Llama-3.1-8B-Instruct")
    (own_hidream_folder / "text_encoder_4").rename(llama)
    for path in (own_hidream_folder / "tokenizer_4").iterdir():
        shutil.move(path, llama)
    (own_hidream_folder / "tokenizer_4").rmdir()
    with pytest.raises(UserError, match="missing folders: text_encoder_4, tokenizer_4. Name a folder .* of Llama 3.1"):
        load(own_hidream_folder)
    model = load(own_hidream_folder, text_encoder_4={"model_name": str(llama)})
    found = model.encode_captions(CAPTIONS)["states"]
    torch.testing.assert_close(found, prompts_of(peer, CAPTIONS)[1][[0, 2]].transpose(0, 1), **CLOSE)


def test_latents_are_those_of_the_peer_and_decode(hidream_folder, peer):
    model = shared(hidream_folder)
    assert model.image_grid == 16 and model.token_count((1, 4, 8, 6)) == 12
    found = model.encode_images(pixels())
    assert found.shape == (2, 4, 4, 4) and found.dtype == torch.float32
    torch.testing.assert_close(found, clean_latents(peer, pixels()), **CLOSE)
    with torch.no_grad():
        decoded = peer.vae.decode(peer.vae.encode(pixels()).latent_dist.mode()).sample
    torch.testing.assert_close(model.decode_images(found), decoded, **CLOSE)


def of_peer(transformer: HiDreamImageTransformer2DModel, noisy: torch.Tensor, level: torch.Tensor, prompts):
    """What the pipeline makes of it; of other shapes than squares with the places and masks that it can be given."""
    hidden, states, pooled = prompts
    (b, c, h, w), given = noisy.shape, {}
    if h != w:
        tokens = noisy.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w // 4, 4 * c)
        places = torch.tensor([[0.0, row, column] for row in range(h // 2) for column in range(w // 2)])
        given = {
            "img_ids": places.repeat(b, 1, 1), "img_sizes": torch.tensor([[h // 2, w // 2]] * b),
            "hidden_states_masks": torch.ones(b, h * w // 4),
        }  # fmt: skip
        noisy = tokens
    with torch.no_grad():
        return -transformer(
            noisy, timesteps=1000 * level, encoder_hidden_states_t5=hidden, encoder_hidden_states_llama3=states,
            pooled_embeds=pooled, return_dict=False, **given,
        )[0]  # fmt: skip


@pytest.mark.parametrize(("shift", "width"), [(1.0, 32), (3.0, 32), (3.0, 48)])
def test_prediction_against_the_peer(hidream_folder, peer, shift, width):
    model = load(hidream_folder, timestep_distribution="LOGIT_NORMAL", timestep_shift=shift)
    images = pixels(width=width)
    latents, conditions = model.encode_images(images), model.encode_captions(CAPTIONS[:2])
    with torch.no_grad():
        prediction = model.predict(latents, conditions, torch.Generator().manual_seed(1))
    # first the noise levels are drawn, then the noise
    generator = torch.Generator().manual_seed(1)
    sigmas = torch.sigmoid(torch.special.ndtri(torch.rand(2, generator=generator, dtype=torch.float64)))
    noise = torch.randn(2, 4, 4, width // 8, generator=generator)
    level = prediction.sigma
    # as diffusers' scheduler shifts its own levels
    torch.testing.assert_close(level.double(), shift * sigmas / (1 + (shift - 1) * sigmas), atol=1e-6, rtol=0)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(peer.scheduler.config)
    # the scheduler looks its noise levels up by timestep
    scheduler.sigmas, scheduler.timesteps = level, 1000 * level
    clean = clean_latents(peer, images)
    noisy = scheduler.scale_noise(clean, 1000 * level, noise)
    expected = of_peer(peer.transformer, noisy, level, prompts_of(peer, CAPTIONS[:2]))
    torch.testing.assert_close(prediction.predicted, expected, **CLOSE)
    torch.testing.assert_close(prediction.target, noise - clean, **CLOSE)
    target_leads_to_the_clean_latents(scheduler, prediction, noisy, clean)


def test_experts_have_the_gradients_of_the_peer(hidream_folder, hidream_pipeline):
    """Those of its training mode, whose output is no image; gradients are checkpointed or not."""
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    conditions = shared(hidream_folder).encode_captions(CAPTIONS[:2])
    level, gradients, outputs = torch.tensor([0.3, 0.9]), [], []
    for checkpoints in (False, True):
        model = load(hidream_folder)
        model.set_gradient_checkpointing("transformer", checkpoints)
        weights = [model.transformer.get_submodule(path).weight.requires_grad_(True) for path in (EXPERT, GATE)]
        outputs.append(model.call_transformer(latents, level, conditions))
        (outputs[-1] * torch.arange(64.0).view(4, 4, 4)).mean().backward()
        gradients.append([weight.grad for weight in weights])
    peer = load(hidream_folder).stored_component("transformer", torch.float32).train()
    states = conditions["states"].transpose(0, 1)[[0, 0, 1]]
    found = peer(
        latents, timesteps=1000 * level, encoder_hidden_states_t5=conditions["hidden"],
        encoder_hidden_states_llama3=states, pooled_embeds=conditions["pooled"], return_dict=False,
    )[0]  # fmt: skip
    # channels, tokens, places in a token
    image = -found.unflatten(2, (2, 2)).unflatten(-1, (2, 2)).permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
    weights = [peer.get_submodule(path).weight for path in (EXPERT, GATE)]
    (image * torch.arange(64.0).view(4, 4, 4)).mean().backward()
    for output, own in zip(outputs, gradients, strict=True):
        torch.testing.assert_close(output, image, **CLOSE)
        for gradient, weight in zip(own, weights, strict=True):
            assert weight.grad.abs().max() > 1e-3
            torch.testing.assert_close(gradient, weight.grad, atol=1e-5, rtol=1e-4)


GATE = "single_stream_blocks.0.block.ff_i.gate"


def test_an_expert_without_tokens(hidream_folder):
    """Its gradient is there, and zero."""
    transformer = load(hidream_folder).stored_component("transformer", torch.float32)
    make_trainable(transformer)
    layer = transformer.get_submodule(GATE.removesuffix(".gate"))
    layer.gate.weight.data[1:] = 0
    hidden = torch.zeros(1, 3, 32)
    hidden[..., 0] = layer.gate.weight.data[0, 0].sign() * 100
    layer.gate.weight.data[2, 0] = layer.gate.weight.data[0, 0] / 2
    for parameter in layer.experts.parameters():
        parameter.requires_grad_(True)
    layer(hidden).sum().backward()
    used = [bool(expert.w1.weight.grad.any()) for expert in layer.experts]
    assert used == [True, False, True]


def test_samples_equal_the_plain_pipeline(hidream_folder, peer):
    model, steps = load(hidream_folder), []
    # whose mode diffusers' own answer depends on
    model.set_gradient_checkpointing("transformer", True)
    sample = SampleConfig(
        prompt="a red cat", negative_prompt="a dog", width=32, height=35, diffusion_steps=3, cfg_scale=2.0
    )
    found = model.sample(sample, 5, lambda k, n: steps.append((k, n)))
    expected = peer(
        prompt="a red cat", negative_prompt="a dog", height=32, width=32, num_inference_steps=3, guidance_scale=2.0,
        max_sequence_length=LENGTH, generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert found.size == expected.size == (32, 32) and steps == [(1, 3), (2, 3), (3, 3)]
    same_picture(found, expected)


@pytest.mark.parametrize("size", [(48, 80), (16, 16), (208, 1008), (1024, 1008)])
def test_samples_have_the_size_that_is_asked_for(hidream_folder, size):
    model = shared(hidream_folder)
    pipeline = model.make_pipeline(FlowMatchEulerDiscreteScheduler())
    sizes = []
    pipeline.check_inputs = lambda *arguments, **options: None
    pipeline.prepare_latents = lambda b, c, height, width, *rest: sizes.append((width, height)) or 1 / 0
    with pytest.raises(ZeroDivisionError):
        prompts = model.pipeline_prompts({k: v.float() for k, v in model.prompts(SampleConfig()).items()})
        pipeline(height=size[1], width=size[0], num_inference_steps=1, **prompts)
    assert sizes == [size]


def test_a_sample_s_own_length_counts(hidream_folder, peer):
    model = shared(hidream_folder)
    found = model.encode_prompts(
        SampleConfig(prompt="a red cat", negative_prompt="a dog", text_encoder_3_sequence_length=6)
    )
    for prefix, text in (("", "a red cat"), ("negative_", "a dog")):
        hidden, states, pooled = prompts_of(peer, [text], 6)
        torch.testing.assert_close(found[f"{prefix}prompt_embeds_t5"], hidden, **CLOSE)
        torch.testing.assert_close(found[f"{prefix}pooled_prompt_embeds"], pooled, **CLOSE)
        given = model.pipeline_prompts(found)[f"{prefix}prompt_embeds_llama3"]
        torch.testing.assert_close(given[[0, 2]], states[[0, 2]], **CLOSE)


def test_text_encoders_are_freed_before_the_transformer_comes(hidream_folder):
    model = load(hidream_folder, **{name: {"weight_dtype": "BFLOAT_16"} for name in ("transformer", *ENCODERS)})
    sample = SampleConfig(prompt="a red cat", width=32, height=32, diffusion_steps=1)
    model.prompts(sample)
    model.encode_images(pixels())
    assert set(model.components.loaded) == {*ENCODERS, "vae"}
    model.rest()
    # with a VAE of another format
    assert model.sample(sample, 1, lambda *_: None).size == (32, 32)
    assert model.transformer.dtype == torch.bfloat16 and model.vae.dtype == torch.float32
    assert not {*ENCODERS} & set(model.components.loaded)


def test_fingerprints_follow_what_they_stand_for(own_hidream_folder):
    model = load(own_hidream_folder)
    before = model.text_fingerprint(), model.image_fingerprint()
    assert (load(own_hidream_folder).text_fingerprint(), load(own_hidream_folder).image_fingerprint()) == before
    assert load(own_hidream_folder, text_encoder_3_sequence_length=8).text_fingerprint() != before[0]
    change_json(own_hidream_folder / "vae" / "config.json", shift_factor=0.5)
    assert load(own_hidream_folder).image_fingerprint() != before[1]
    change_json(own_hidream_folder / "transformer" / "config.json", llama_layers=[0, 1])
    assert load(own_hidream_folder).text_fingerprint() != before[0]


# --- what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt_chunks": 2}, "prompt_chunks: found 2, but HI_DREAM_FULL does not read captions in chunks"),
        ({"dynamic_timestep_shifting": True}, "dynamic_timestep_shifting: .* sizes by 3. .*timestep_shift to 3"),
        ({"text_encoder_4_layer_skip": 1}, "text_encoder_4_layer_skip: has no meaning for HI_DREAM_FULL"),
    ],
)
def test_options_without_meaning_are_named(hidream_folder, options, words):
    with pytest.raises(UserError, match=words):
        load(hidream_folder, **options)


def test_a_text_encoder_with_too_few_layers(own_hidream_folder):
    change_json(own_hidream_folder / "text_encoder_4" / "config.json", num_hidden_layers=2)
    with pytest.raises(UserError, match="reads layer 3 of this text encoder, which has 2. Take Llama 3.1 8B Instruct"):
        load(own_hidream_folder).check_layers()


def test_a_file_as_base_model_is_explained(tmp_path):
    path = tmp_path / "hidream_i1_full_fp16.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no tokenizer of T5.*HiDream here.*text_encoder_4 and vae"):
        load(path)
