"""What samples of families with conditioning images start from: number formats, files, shapes and masks."""

from pathlib import Path
from typing import Any

from modules.dataLoader.plan import PlannedBatch, PlannedSample
from modules.tool.sample_tool import Wishes, draw_images
from modules.trainer.checks import check_sample_pictures, run_problems
from modules.util.config.load import train_config_from_dict
from modules.util.config.SampleConfig import SampleConfig
from modules.util.keyed_random import step_generator
from modules.util.UserError import UserError
from tests.model.conditioned_families import (
    EDITING,
    INPAINTING,
    ChannelsModel,
    TokensModel,
    know_families,
    run_options,
    sample_of,
)

import torch

import pytest
from diffusers import AutoencoderKL
from PIL import Image


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
    return {**options, **rounds, "samples": list(samples)} | others


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


def folder_of(options: dict[str, Any]) -> Path:
    return Path(options["concepts"][0]["path"])


def test_a_broken_picture_is_told_before_anything_is_loaded(make_run, kind, options, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    samples = [sample_of(kind, options, 0), {**sample_of(kind, options, 2), "base_image_path": str(bad)}]
    run = make_run(own_cache=True)
    with pytest.raises(UserError, match=r"samples: sample 2: base_image_path: .*bad\.png: its content is no image"):
        run.train(**with_samples(options, *samples))
    assert not run.of_kind("status")
    # one that is not drawn is not read
    samples[1]["enabled"] = False
    check_sample_pictures(train_config_from_dict(run.options(**with_samples(options, *samples))))
    samples[1]["enabled"] = True
    never = with_samples(options, *samples, sample_after_unit="NEVER")
    check_sample_pictures(train_config_from_dict(run.options(**never)))


def test_a_picture_that_goes_missing_costs_its_sample_alone(make_run, kind, options):
    run = make_run(own_cache=True)
    samples = [sample_of(kind, options, number) for number in (0, 2)]
    trainer = run.trainer(**with_samples(options, *samples))
    trainer._prepare()
    Path(samples[0]["base_image_path"]).unlink()
    trainer.rounds.draw()
    (record,) = trainer.progress.samples
    (file,) = record["files"]
    assert Path(file).parent.name.startswith("1 - ") and Path(record["grid"]).is_file()
    (warning,) = [text for text in run.warnings() if "left out" in text]
    assert warning.startswith("The sample 'a colour' is left out: base_image_path: ") and "cannot be read" in warning


def problems_of(run, options: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What is wrong with a run, and what it is told beside."""
    notes: list[str] = []
    problems = run_problems(train_config_from_dict(run.options(**options)), notes.append)
    return [str(problem) for problem in problems], notes


@ONE_KIND
def test_text_is_not_trained_where_captions_see_the_picture(make_run, kind, options, monkeypatch):
    run = make_run(own_cache=True)
    trained = {"text_encoder": {"train": True, "gradient_checkpointing": False}}
    embedding = {"placeholder": "colour", "token_count": 1, "initial_embedding_text": "red"}
    assert problems_of(run, {**options, **trained})[0] == []
    monkeypatch.setattr(ChannelsModel, "captions_see_conditioning", True)
    assert problems_of(run, options)[0] == []
    (problem,) = problems_of(run, {**options, **trained})[0]
    assert problem.startswith(
        "text_encoder.train: found true, but STABLE_DIFFUSION_15_INPAINTING reads captions togeth"
    )
    (problem,) = problems_of(run, {**options, "additional_embeddings": [{**embedding, "train": True}]})[0]
    assert problem.startswith("trained embeddings: STABLE_DIFFUSION_15_INPAINTING reads captions together with")


def test_pictures_that_nobody_reads_are_told(make_run, kind, options):
    run, own = make_run(own_cache=True), sample_of(kind, options, 0)
    paths = {"base_image_path": "/gone/a.png", "mask_image_path": "/gone/b.png"}

    def told(sample: dict[str, Any], **others: Any) -> list[str]:
        problems, notes = problems_of(run, with_samples(options, sample, **others))
        assert problems == []
        return [note for note in notes if "not read" in note]

    assert told(own) == []
    if kind == EDITING:
        (note,) = told({**own, "mask_image_path": "/gone/b.png"})
        assert note == "samples: sample 1 mask_image_path: not read, as FLUX_DEV_1 fills no masks"
        return
    unread = "samples: sample 1 base_image_path, sample 1 mask_image_path: not read, as "
    assert told({"prompt": "x", **paths}) == [f"{unread}sample_inpainting is off"]
    assert told({"prompt": "x", **paths, "enabled": False}) == []
    assert told({"prompt": "x", **paths}, sample_after_unit="NEVER") == []
    options["model_type"] = "STABLE_DIFFUSION_15"
    assert told({"prompt": "x", **paths}) == [f"{unread}STABLE_DIFFUSION_15 draws from no picture"]


@torch.no_grad()
def shown(trainer, sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the denoiser gets beside the noised latents, of the first picture in training and of the sample."""
    got: list[torch.Tensor] = []
    trainer.model.denoiser.register_forward_pre_hook(lambda _, given: got.append(given[0][:, 4:]))
    batch = trainer.data.load(PlannedBatch((PlannedSample(0, 0, 0),), trainer.data.source.size(0, 0)))
    trainer.model.predict_batch(batch, step_generator(1, "measure"))
    trainer.model.sample(SampleConfig.from_dict(sample), 1, lambda *_: None)
    return got[0], got[1]


@ONE_KIND
@pytest.mark.parametrize("custom", [False, True])
def test_samples_see_masks_and_images_of_their_own_as_training_does(make_run, kind, options, custom):
    """The mask's edge lies within a latent, which is half masked; an image of its own is shown under the mask, too."""
    for number in range(8):
        mask = Image.new("L", (32, 32), 0)
        mask.paste(255, (0, 0, 14, 32))
        mask.save(folder_of(options) / f"{number}-masklabel.png")
        Image.effect_noise((32, 32), 90).save(folder_of(options) / f"{number}-condlabel.png")
    trainer = make_run(own_cache=True).trainer(**options, custom_conditioning_image=custom)
    trainer._prepare()
    sample = sample_of(kind, options, 0)
    if custom:
        sample["base_image_path"] = str(folder_of(options) / "0-condlabel.png")
    trained, drawn = shown(trainer, sample)
    assert 0.5 in trained[0, 0].unique().tolist()
    torch.testing.assert_close(drawn, trained)


@ONE_KIND
def test_a_mask_of_another_shape_is_refused(make_run, kind, options, tmp_path):
    sample = sample_of(kind, options, 0)
    Image.new("L", (64, 32), 255).save(tmp_path / "wide.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "large.png")
    run = make_run(own_cache=True)
    with pytest.raises(UserError, match=r"sample 1: mask_image_path: .*wide.png has 64x32 px, which is another shape"):
        run.train(**with_samples(options, {**sample, "mask_image_path": str(tmp_path / "wide.png")}))
    run.trainer(**with_samples(options, {**sample, "mask_image_path": str(tmp_path / "large.png")}))._prepare()


def test_the_command_line_names_a_mask_that_is_not_used(make_run, kind, options, tmp_path):
    sample = {"prompt": "x", "mask_image_path": str(tmp_path / "m.png"), "sample_inpainting": True}
    types = ["STABLE_DIFFUSION_15"] if kind == INPAINTING else ["STABLE_DIFFUSION_15", "FLUX_DEV_1"]
    for model_type in types:
        path = make_run(model_type, own_cache=True).write(
            **{**options, "model_type": model_type, "custom_conditioning_image": False}
        )
        wishes = Wishes(config=path, sample=sample, output=tmp_path / "drawn", device="cpu")
        with pytest.raises(UserError, match=f"--mask: {model_type} fills no masks. Leave it out."):
            draw_images(wishes, lambda _: None)
