"""Too little memory for samples never costs a run anything but those samples."""

from modules.model.StableDiffusionModel import StableDiffusionModel

import torch

import pytest
from diffusers import AutoencoderKL
from PIL import Image

SAMPLES = {
    "samples": [
        {"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 2, "seed": 1},
        {"prompt": "a blue shape", "width": 32, "height": 32, "diffusion_steps": 2, "seed": 2},
    ],
    "sample_after": 1, "sample_after_unit": "EPOCH", "sample_image_format": "PNG",
}  # fmt: skip
# what torch raises on CUDA, on the CPU, and what some of its libraries make of it
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    MemoryError(),
]


@pytest.mark.parametrize("train_text", [False, True], ids=["unet", "unet and text encoder"])
def test_the_run_ends_as_one_without_samples(make_run, monkeypatch, train_text):
    options = {"text_encoder": {"train": train_text, "gradient_checkpointing": False}}
    quiet = make_run("quiet")
    quiet.train(**options)
    errors = iter(ERRORS)
    draw, calls = StableDiffusionModel.sample, []

    def sample(self, sample, seed, on_step):
        calls.append(sample.prompt)
        # in the middle of an image, and of the run: the first round goes well
        return draw(self, sample, seed, fail if len(calls) > 2 and "blue" in sample.prompt else on_step)

    def fail(step, steps):
        raise next(errors)

    monkeypatch.setattr(StableDiffusionModel, "sample", sample)
    run = make_run()
    run.train(**{**SAMPLES, "sample_after": 2}, **options)
    assert run.digest() == quiet.digest()
    told = [text for text in run.warnings() if "Too little memory" in text]
    # two tries in each of two rounds
    assert next(errors, None) is None
    assert [text.split("sample ")[1] for text in told] == ["'a blue shape' at 32x32; it is left out."] * 2
    drawn = [values["step"] for values in run.of_kind("sample") if "red" in values["path"]]
    assert drawn == [0, 8, 12], "the other sample goes on"


def test_the_second_try_decodes_in_tiles(make_run, monkeypatch):
    decode = AutoencoderKL.decode

    def greedy(self, *arguments, **options):
        if not self.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(self, *arguments, **options)

    usual = make_run("usual")
    usual.train(**SAMPLES, epochs=1)
    monkeypatch.setattr(AutoencoderKL, "decode", greedy)
    run = make_run()
    trainer = run.trainer(**SAMPLES, epochs=1)
    trainer.run()
    assert run.digest() == usual.digest()
    told = [text for text in run.warnings() if "Too little memory" in text]
    assert len(told) == 4 and all("in tiles, went well" in text for text in told)
    assert not trainer.model.components["vae"].use_tiling, "it is switched off again"
    for ours, plain in zip(run.of_kind("sample")[:4], usual.of_kind("sample")[:4], strict=True):
        # the miniature's images are smaller than a tile, so that nothing else differs
        assert Image.open(ours["path"]).tobytes() == Image.open(plain["path"]).tobytes()


def test_other_errors_are_told_as_what_they_are(make_run, monkeypatch):
    def sample(self, sample, seed, on_step):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(StableDiffusionModel, "sample", sample)
    run = make_run()
    run.train(**SAMPLES, epochs=1)
    assert all("cannot be multiplied" in text for text in run.warnings() if "samples" in text.lower())
    assert not any("Too little memory" in text for text in run.warnings()) and run.output.is_file()
