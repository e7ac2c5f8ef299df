"""What samples of families with conditioning images start from: number formats, files, shapes and masks."""

from typing import Any

from tests.model.conditioned_families import (
    EDITING,
    INPAINTING,
    TokensModel,
    know_families,
    run_options,
    sample_of,
)

import torch

import pytest
from diffusers import AutoencoderKL


@pytest.fixture(params=[INPAINTING, EDITING], ids=["channels", "tokens"])
def kind(request, monkeypatch):
    know_families(monkeypatch)
    return request.param


@pytest.fixture
def options(kind, mini_base, tmp_path) -> dict[str, Any]:
    return run_options(kind, mini_base, tmp_path)


ONE_KIND = pytest.mark.parametrize("kind", [INPAINTING], indirect=True, ids=["channels"])


def with_samples(options: dict[str, Any], *samples: dict[str, Any], **others: Any) -> dict[str, Any]:
    """A run of one epoch that draws before and after it."""
    rounds = {"epochs": 1, "sample_after": 1, "sample_after_unit": "EPOCH"}
    return {**options, **rounds, "samples": list(samples), **others}


@pytest.mark.parametrize("train_dtype", ["FLOAT_32", "BFLOAT_16"])
def test_a_vae_of_another_format_than_the_denoisers(make_run, kind, options, monkeypatch, train_dtype):
    """Pictures are encoded in the VAE's own format, whatever the denoiser's and the run's are."""
    formats, encode = set(), AutoencoderKL.encode

    def spy(self, pixels, *given, **named):
        formats.add((pixels.dtype, torch.is_autocast_enabled("cpu")))
        return encode(self, pixels, *given, **named)

    monkeypatch.setattr(AutoencoderKL, "encode", spy)
    run, denoiser = make_run(own_cache=True), "unet" if kind == INPAINTING else "transformer"
    formats_of = {
        denoiser: {"gradient_checkpointing": False, "weight_dtype": "BFLOAT_16"},
        "vae": {"weight_dtype": "FLOAT_32"},
    }
    report = run.train(**with_samples(options, sample_of(kind, options, 0), train_dtype=train_dtype, **formats_of))
    assert not [text for text in run.warnings() if "failed" in text]
    assert report["samples"] and all(len(drawn["files"]) == 1 for drawn in report["samples"])
    assert formats == {(torch.float32, False)}


def test_families_that_edit_say_what_their_pipeline_is_told():
    with pytest.raises(TypeError, match="Careless takes conditioning images from files, so it needs a pipeline_cond"):
        type("Careless", (TokensModel,), {"pipeline_conditioning": TokensModel.__mro__[1].pipeline_conditioning})
