"""Captions that are longer than a text encoder reads: counted in every family, read in chunks by CLIP."""

import time
from functools import cache
from pathlib import Path

from modules.dataLoader.Encoder import Encoder
from modules.model.BaseModel import family_of
from modules.model.cut_text import LONGEST_TEXT
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch

import pytest

CPU = torch.device("cpu")
# a letter is a token of the small tokenizer at least: far more than the 14 of one chunk
LONG = "a b c d e f g h i j k l m n o p q r s t u v"
SHORT = ["red cat", "a (blue) dog!", ""]


@cache
def load(folder: Path, **options):
    config = TrainConfig.from_dict({"base_model_name": str(folder), **options})
    model = family_of(config).load(config, CPU)
    model.components.load_all()
    return model


@pytest.fixture(params=["sd", "xl"])
def make(request, small_folder, xl_folder):
    """A model of the family with some options; the same one for the same options."""
    folder = small_folder if request.param == "sd" else xl_folder
    kind = "STABLE_DIFFUSION_15" if request.param == "sd" else "STABLE_DIFFUSION_XL_10_BASE"
    return lambda **options: load(folder, model_type=kind, **options)


def encode(model, captions: list[str]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return model.encode_captions(captions)


def ids_of(model, component: str, text: str) -> list[int]:
    return model.tokenizer_of[component](text, add_special_tokens=False).input_ids


def chunk_by_hand(model, component: str, ids: list[int], room: int) -> torch.Tensor:
    tokenizer = model.tokenizer_of[component]
    row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return torch.tensor([row + [tokenizer.pad_token_id] * (room + 2 - len(row))])


def test_chunks_are_read_one_by_one(make):
    model = make(prompt_chunks=4)
    found, hidden, pooled = encode(model, [LONG]), [], []
    for component in model.tokenizer_of:
        room, ids, states = model.text_limits()[component] // 4, ids_of(model, component, LONG), []
        assert room < len(ids) < 4 * room
        for start in range(0, len(ids), room):
            with torch.no_grad():
                read = model.components[component](
                    chunk_by_hand(model, component, ids[start : start + room], room), output_hidden_states=True
                )
            states.append(read.hidden_states[-2] if len(model.tokenizer_of) > 1 else read.last_hidden_state)
            pooled.append(getattr(read, "text_embeds", None))
        hidden.append(torch.cat(states, 1))
    # batched in another way through the same weights
    torch.testing.assert_close(found["hidden"], torch.cat(hidden, -1), atol=1e-5, rtol=1e-5)
    if "pooled" in found:
        first = pooled[len(pooled) // 2]
        torch.testing.assert_close(found["pooled"], first, atol=1e-5, rtol=1e-5)


def test_short_captions_and_one_chunk_are_as_they_were(make):
    plain, chunked = make(), make(prompt_chunks=3)
    for name, tensor in encode(plain, SHORT).items():
        assert torch.equal(tensor, encode(chunked, SHORT)[name])
    cut = encode(plain, [LONG])
    assert cut["hidden"].shape[1] < encode(chunked, [LONG])["hidden"].shape[1]
    assert torch.allclose(encode(chunked, [LONG])["hidden"][:, : cut["hidden"].shape[1]], cut["hidden"], atol=1e-5)


def test_a_batch_has_the_chunks_of_its_longest(make):
    model = make(prompt_chunks=2)
    both, short = encode(model, ["red cat", LONG * 3]), encode(model, ["red cat"])
    length = short["hidden"].shape[1]
    assert both["hidden"].shape[1] == 2 * length, "what is behind two chunks is cut"
    empty = encode(model, [""])["hidden"][0]
    expected = torch.cat([short["hidden"][0], empty])
    torch.testing.assert_close(both["hidden"][0], expected, atol=1e-5, rtol=1e-5)
    assert both["hidden"].shape[0] == 2 and all(len(tensor) == 2 for tensor in both.values())


def test_prompts_and_negative_prompts_are_padded_alike(make):
    model = make(prompt_chunks=3)
    for prompt, negative in ((LONG, ""), ("red", LONG)):
        encoded = model.encode_prompts(SampleConfig(prompt=prompt, negative_prompt=negative))
        assert encoded["hidden"].shape == encoded["negative"].shape
        assert encoded["hidden"].shape[1] > encode(model, ["red"])["hidden"].shape[1]
    sample = SampleConfig(prompt=LONG, width=32, height=32, diffusion_steps=1)
    drawn = [m.sample(sample, 1, lambda step, steps: None) for m in (model, make())]
    assert drawn[0].tobytes() != drawn[1].tobytes()


def test_the_fingerprint_knows_the_option_where_it_is_used(make):
    prints = [make(**options).text_fingerprint() for options in ({}, {"prompt_chunks": 1}, {"prompt_chunks": 2})]
    assert prints[0] == prints[1] != prints[2]
    assert "chunk" not in prints[0]


def test_gradients_reach_every_chunk(small_folder):
    config = TrainConfig(base_model_name=str(small_folder), prompt_chunks=3)
    model = family_of(config).load(config, CPU)
    weight = model.text_encoder.get_input_embeddings().weight.requires_grad_()
    model.text_encoder_trained = True
    last = ids_of(model, "text_encoder", LONG)[-1]
    hidden = model.encode_captions([LONG])["hidden"]
    hidden[:, -model.tokens("text_encoder", [""], None).shape[1] :].square().sum().backward()
    assert weight.grad[last].abs().sum() > 0


def test_counts(make):
    model, chunked = make(), make(prompt_chunks=3)
    for component, limit in model.text_limits().items():
        assert chunked.text_limits()[component] == 3 * limit
        counts = model.count_tokens(component, [LONG, "", "red"])
        assert counts == [len(ids_of(model, component, text)) for text in (LONG, "", "red")]
        assert model.count_tokens(component, []) == []
        assert model.read_more(component, counts[0]) == "prompt_chunks to 2"
        assert model.read_more(component, 10**6) == "prompt_chunks to 32, which is the most there is"
    assert (
        load(Path(model.config.base_model_name), model_type=model.config.model_type, prompt_chunks=32).read_more(
            "text_encoder", 10**6
        )
        == ""
    )


@pytest.mark.parametrize("length", [1, 2, 3])
def test_lengths_that_leave_little_room(small_folder, length):
    model = load(small_folder, text_encoder_sequence_length=length, prompt_chunks=2)
    assert encode(model, [LONG])["hidden"].shape[1] == 2 * length
    assert model.text_limits() == {"text_encoder": 2 * max(0, length - 2)}


def test_flux_counts_what_is_the_captions_own(flux2_folders):
    for folder in flux2_folders.values():
        config = TrainConfig(base_model_name=str(folder), model_type="FLUX_2", text_encoder_sequence_length=48)
        model = family_of(config).load(config, CPU)
        empty, one, two = model.count_tokens("text_encoder", ["", "red", "red red red"])
        limit = model.text_limits()["text_encoder"]
        assert empty == 0 < one < two and 0 < limit < 48
        assert model.read_more("text_encoder", 100) == f"text_encoder_sequence_length to {100 + 48 - limit}"


def test_families_without_clip_refuse_the_option(flux2_folders):
    folder = next(iter(flux2_folders.values()))
    config = TrainConfig(base_model_name=str(folder), model_type="FLUX_2", prompt_chunks=2)
    with pytest.raises(UserError, match="prompt_chunks: found 2, but FLUX_2 does not read captions in chunks"):
        family_of(config).load(config, CPU)


def test_ten_megabytes_take_no_time(make):
    text = "red " * 2_500_000
    for model in (make(), make(prompt_chunks=2)):
        start = time.monotonic()
        tensors = Encoder(model).caption(text)
        assert time.monotonic() - start < 10  # less than one on an idle core; a minute and more without the cut
        assert torch.equal(tensors["hidden"], Encoder(model).caption(text[:LONGEST_TEXT])["hidden"])
