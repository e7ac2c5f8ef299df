"""Words that a text encoder learns beside its vocabulary: where they are found, and what the encoders make of them."""

import copy

from modules.model.AddedWords import AddedWords
from modules.model.StableDiffusionModel import StableDiffusionModel
from modules.model.StableDiffusionXLModel import StableDiffusionXLModel
from modules.modelSaver.embedding_file import write_embedding
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig

import torch
from torch import Tensor

import pytest
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection


def vectors(count: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model(small_folder):
    config = TrainConfig(base_model_name=str(small_folder))
    return StableDiffusionModel.load(config, torch.device("cpu"))


@pytest.mark.parametrize(
    ("word", "text", "times"),
    [
        ("<it>", "a <it>, and <IT><it>", 3),
        ("it", "it fits it.", 2),
        ("it", "with bits", 0),
        ("*", "a*b *", 2),
        ("a.b", "axb", 0),
    ],
)
def test_words_are_found_whole(model, word, text, times):
    own = vectors(2, 32)
    model.add_word(word, {"text_encoder": lambda: own})
    expanded = model.added_words["text_encoder"].expand(text)
    assert expanded.count(f"{word.lower()}#0 {word.lower()}#1") == times
    if not times:
        assert expanded == text


def test_the_longer_of_two_words_is_meant(model):
    for word in ("cat", "<cat>", "<cat>s"):
        own = vectors(1, 32)
        model.add_word(word, {"text_encoder": lambda own=own: own})
    expanded = model.added_words["text_encoder"].expand("<cat>s <cat> cat")
    assert expanded.split() == ["<cat>s#0", "<cat>#0", "cat#0"]


def test_a_word_with_the_vectors_of_words_reads_like_them(model):
    plain = model.encode_captions(["a red cat on it", "no cat"])["hidden"]
    words = model.added_words["text_encoder"]
    own = words.vectors_of(model.components["text_encoder"], "red cat")
    assert own.shape == (2, 32)
    model.add_word("<new>", {"text_encoder": lambda: own})
    assert torch.equal(model.encode_captions(["a <new> on it", "no cat"])["hidden"], plain)
    # the encoder is loaded anew, and knows the word all the same
    model.components.free("text_encoder")
    assert torch.equal(model.encode_captions(["a <new> on it", "no cat"])["hidden"], plain)


def test_gradients_reach_the_vectors_alone(model):
    own = vectors(3, 32).requires_grad_()
    model.add_word("<new>", {"text_encoder": lambda: own})
    model.text_encoder_trained = True
    model.encode_captions(["a <new>", "a cat"])["hidden"].square().sum().backward()
    assert own.grad.abs().sum(dim=1).min() > 0
    assert all(parameter.grad is None for parameter in model.components["text_encoder"].parameters())
    alone = own.grad.clone()
    own.grad = None
    model.encode_captions(["a <new>"])["hidden"].square().sum().backward()
    torch.testing.assert_close(own.grad, alone, rtol=1e-5, atol=1e-6)


def test_cached_captions_know_their_vectors(model):
    fingerprints = [model.text_fingerprint()]
    for seed in (1, 2):
        own = vectors(1, 32, seed)
        model.add_word(f"<{seed}>", {"text_encoder": lambda own=own: own})
        fingerprints.append(model.text_fingerprint())
    own.add_(1)
    fingerprints.append(model.text_fingerprint())
    assert len(set(fingerprints)) == 4


@pytest.mark.parametrize("kind", ["SD", "SDXL"])
def test_diffusers_makes_the_same_of_the_file(kind, request, tmp_path):
    """What diffusers loads from a written file gives the prompt embedding of the model that wrote it."""
    family, pipeline_class, folder = {
        "SD": (StableDiffusionModel, StableDiffusionPipeline, "small_folder"),
        "SDXL": (StableDiffusionXLModel, StableDiffusionXLPipeline, "xl_folder"),
    }[kind]
    folder = str(request.getfixturevalue(folder))
    model = family.load(TrainConfig(base_model_name=folder, model_type=family.model_types[0]), torch.device("cpu"))
    widths = {
        component: model.layers_of(component).get_input_embeddings().embedding_dim for component in model.embedding_keys
    }
    own = {component: vectors(2, width, seed) for seed, (component, width) in enumerate(widths.items())}
    model.add_word("<it>", {component: lambda component=component: own[component] for component in own})
    path = tmp_path / "it.safetensors"
    write_embedding(path, {key: own[component] for component, key in model.embedding_keys.items()})
    found = model.encode_prompts(SampleConfig(prompt="a <it> cat", negative_prompt="red"))

    pipeline = pipeline_class.from_pretrained(folder)
    if kind == "SD":
        pipeline.load_textual_inversion(str(path), token="<it>")
        hidden, negative = pipeline.encode_prompt("a <it> cat", "cpu", 1, True, "red")
    else:
        tensors = load_file(path)
        for number, key in (("", "clip_l"), ("_2", "clip_g")):
            pipeline.load_textual_inversion(
                tensors[key], token="<it>", text_encoder=getattr(pipeline, f"text_encoder{number}"),
                tokenizer=getattr(pipeline, f"tokenizer{number}"),
            )  # fmt: skip
        encoded = pipeline.encode_prompt("a <it> cat", None, "cpu", 1, True, "red")
        hidden, negative, pooled, negative_pooled = encoded
        torch.testing.assert_close(found["pooled"], pooled, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found["negative_pooled"], negative_pooled, rtol=1e-5, atol=1e-5)
    # the same arithmetic, in batches of another size
    torch.testing.assert_close(found["hidden"], hidden, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["negative"], negative, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("end", ["its own", "highest"])
def test_the_end_of_a_text_stays_its_end(small_pipeline, end):
    """Old configs of CLIP, with 2 as the end of a text, mean its highest number: that of an added token, if seen."""
    tokenizer = copy.deepcopy(small_pipeline.tokenizer)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=8, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if end == "its own" else 2, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    encoder, words = CLIPTextModelWithProjection(config).eval(), AddedWords(tokenizer)

    def pooled(text: str) -> Tensor:
        ids = tokenizer(words.expand(text), padding="max_length", max_length=16, return_tensors="pt").input_ids
        with torch.no_grad():
            return encoder(ids).text_embeds

    plain = pooled("a cat red")
    own = words.vectors_of(encoder, "cat")
    words.add("<new>", lambda: own)
    words.hook(encoder)
    assert torch.equal(pooled("a <new> red"), plain)
    assert not torch.allclose(pooled("a <new> <new>"), plain)


def test_a_run_with_two_encoders_writes_one_file(make_run, xl_folder):
    run = make_run(own_cache=True)
    run.base = xl_folder
    options = {
        "model_type": "STABLE_DIFFUSION_XL_10_BASE", "training_method": "EMBEDDING", "epochs": 1,
        "output_model_format": "SAFETENSORS", "text_encoder_2": {"gradient_checkpointing": False},
        "embedding": {"placeholder": "red", "token_count": 2, "initial_embedding_text": "cat"},
    }  # fmt: skip
    trainer = run.trainer(**options)
    trainer.run()
    written = load_file(run.output)
    assert {key: list(tensor.shape) for key, tensor in written.items()} == {"clip_l": [2, 16], "clip_g": [2, 24]}
    base = StableDiffusionXLModel.load(trainer.config, torch.device("cpu"))
    for component, key in base.embedding_keys.items():
        start = base.added_words[component].vectors_of(base.components[component], "cat cat")
        assert (written[key] - start).abs().min() > 1e-4, "both encoders' vectors are trained"
        before, after = (model.components[component].state_dict() for model in (base, trainer.model))
        assert all(torch.equal(before[name], after[name]) for name in before)
