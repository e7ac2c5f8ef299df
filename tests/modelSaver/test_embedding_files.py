"""Embedding files: what is read, what is refused, and what other programs find in ours."""

import argparse
from collections import OrderedDict

from modules.modelSaver.embedding_file import fit_embedding, read_embedding, write_embedding
from modules.util.UserError import UserError

import torch

import pytest
from safetensors.torch import load_file, save_file

ONE, TWO = torch.arange(6.0).view(2, 3), torch.arange(8.0).view(2, 4)


def test_written_files_hold_the_vectors_under_known_names(tmp_path):
    path = tmp_path / "one.safetensors"
    write_embedding(path, {"emb_params": ONE}, {"modelspec.title": "one"})
    assert load_file(path).keys() == {"emb_params"} and torch.equal(read_embedding(path)["emb_params"], ONE)
    path = tmp_path / "two.safetensors"
    write_embedding(path, {"clip_l": ONE, "clip_g": TWO})
    found = read_embedding(path)
    assert load_file(path).keys() == found.keys() == {"clip_l", "clip_g"} and torch.equal(found["clip_g"], TWO)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a1111.pt", {"string_to_param": {"*": ONE}, "string_to_token": {"*": 265}, "name": "x", "step": 100}),
        ("diffusers.bin", OrderedDict({"<x>": ONE})),
        ("tensor.pt", ONE),
        ("half.pt", {"<x>": ONE.half()}),
    ],
)
def test_pickles_of_others(tmp_path, name, content):
    torch.save(content, tmp_path / name)
    assert torch.equal(read_embedding(tmp_path / name)["emb_params"], ONE)


def test_a_single_vector_is_one_token(tmp_path):
    save_file({"<x>": ONE[0].clone()}, tmp_path / "x.safetensors")
    assert read_embedding(tmp_path / "x.safetensors")["emb_params"].shape == (1, 3)


def test_bad_files_are_told_in_words(tmp_path):
    cases = {
        "code.pt": ({"string_to_param": {"*": ONE}, "more": argparse.Namespace()}, "more than tensors"),
        "empty.pt": ({"string_to_param": {}}, "holds no embedding"),
        "numbers.pt": ({"step": 3}, "holds no embedding"),
        "nan.pt": ({"x": ONE / 0}, "NaN or infinite"),
        "cube.pt": ({"x": torch.ones(1, 2, 3)}, r"the shape \\[1, 2, 3\\]".replace("\\\\", "\\")),
    }
    for name, (content, words) in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=words):
            read_embedding(tmp_path / name)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    (tmp_path / "cut.pt").write_bytes(b"PK")
    save_file({"lora.up": ONE, "lora.down": TWO}, tmp_path / "lora.safetensors")
    for name, words in [("cut.safetensors", "not a complete"), ("cut.pt", "damaged"), ("none.pt", "no such file"),
                        ("lora.safetensors", "holds no embedding")]:  # fmt: skip
        with pytest.raises(UserError, match=words):
            read_embedding(tmp_path / name)


def test_vectors_belong_to_encoders_of_their_width(tmp_path):
    path = tmp_path / "two.safetensors"
    write_embedding(path, {"clip_l": ONE, "clip_g": TWO})
    keys = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    fitted = fit_embedding(path, keys, {"text_encoder": 3, "text_encoder_2": 4})
    assert torch.equal(fitted["text_encoder_2"], TWO)
    # one encoder takes the one that fits: SD 1.5 has the first encoder of SDXL
    only = {"text_encoder": "emb_params"}
    assert torch.equal(fit_embedding(path, only, {"text_encoder": 3})["text_encoder"], ONE)
    with pytest.raises(UserError, match="another kind of base model"):
        fit_embedding(path, only, {"text_encoder": 5})
    write_embedding(path, {"clip_l": ONE})
    with pytest.raises(UserError, match="text_encoder_2 of this model needs clip_g of width 4"):
        fit_embedding(path, keys, {"text_encoder": 3, "text_encoder_2": 4})
    write_embedding(path, {"clip_l": ONE, "clip_g": TWO[:1]})
    with pytest.raises(UserError, match="as many vectors for each"):
        fit_embedding(path, keys, {"text_encoder": 3, "text_encoder_2": 4})


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(2, 3, device="meta"), "an empty tensor"),
        (torch.eye(3).to_sparse(), "a sparse or nested tensor"),
        (torch.ones(2, 3, dtype=torch.complex64), "a torch.complex64 tensor"),
        (torch.ones(2, 3, dtype=torch.int64), "a torch.int64 tensor"),
    ],
)
def test_tensors_without_plain_numbers_are_refused(tmp_path, tensor, words):
    torch.save({"emb_params": tensor}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=words):
        read_embedding(tmp_path / "x.pt")
