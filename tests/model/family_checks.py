"""What whole runs and files of every family keep to; a family's tests give their settings."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from modules.model.BaseModel import model_families
from modules.model.QuantizedLinear import QuantizedLinear
from modules.model.recognize_model import find_model_type
from modules.modelSaver.AdapterFile import read_adapter
from modules.trainer.checks import run_problems
from modules.trainer.trained import make_trained, save_trained
from modules.util.config.load import train_config_from_dict
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelType import ModelType

import torch
from torch import Tensor

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

SCALED = {"optimizer": "ADAMW_ADV", "scaled_optm": True}
KINDS = {
    "LoRA": {},
    "DoRA": {"lora_decompose": True},
    "OFT": {"peft_type": "OFT_2", "oft_block_size": 8, "oft_scaled": True},
    "full": {"training_method": "FINE_TUNE", "output_model_format": "ORIGINAL_TRANSFORMER", "learning_rate": 0.01},
}
"""Ways of training -> their settings."""
PAIR_KINDS = {
    "Stiefel": {
        "optimizer": {"optimizer": "STIEFEL_LORA"}, "lora_init": "ORTHONORMAL", "lora_rank": 4, "lora_alpha": 4.0,
    },
    "RITE": {"optimizer": {"optimizer": "LORA_RITE", "scaled_optm": True}},
}  # fmt: skip
"""The same of rules that see both factors of a LoRA."""
SAMPLE = {"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 2, "cfg_scale": 3.0, "seed": 3}
DRAWN = {
    "output_model_format": "DIFFUSERS_LORA", "sample_after": 1, "sample_after_unit": "EPOCH",
    "sample_image_format": "PNG", "epochs": 1, "learning_rate": 0.1,
}  # fmt: skip
"""Settings of a run for `diffusers_draws_the_same`."""


def same_bytes_after_a_stop(make_run: Any, settings: dict) -> None:
    """A run of 6 steps with a sample after 3, and one that is stopped there and continued.

    Args:
        make_run: the fixture.
        settings: of both.
    """
    whole, cut = make_run("whole"), make_run("cut")
    whole.train(**settings)
    cut.train(stop_after=3, **settings)
    cut.train(continue_last_backup=True, **settings)
    assert whole.digest() == cut.digest()
    pictures = [path.read_bytes() for run in (whole, cut) for path in sorted(run.workspace.rglob("0 - */*.jpg"))]
    # at the start, after 3 and 6 steps, and at the end
    assert len(pictures) == 8 and pictures[:4] == pictures[4:] and len(set(pictures[:4])) > 1


def diffusers_draws_the_same(
    run: Any,
    folder: Path,
    settings: dict,
    draw: Callable[[Path], Image.Image] | None = None,
    prepare: Callable[[Any], None] | None = None,
    **of_pipeline: Any,
) -> None:
    """The file of a run gives diffusers the picture that the run itself drew at its end.

    Args:
        run: of `make_run`.
        folder: of the base model.
        settings: of the run, with `DRAWN` and one sample.
        draw: file -> the sample by diffusers; None: by the usual pipeline.
        prepare: what else is done to the pipeline.
        of_pipeline: what the family's pipeline is told beside.
    """

    def by_pipeline(file: Path) -> Image.Image:
        pipeline = DiffusionPipeline.from_pretrained(folder)
        pipeline.load_lora_weights(str(file))
        if prepare is not None:
            prepare(pipeline)
        return pipeline(
            prompt="a red shape", width=32, height=32, num_inference_steps=2, guidance_scale=2.0,
            generator=torch.Generator().manual_seed(3), **of_pipeline,
        ).images[0]  # fmt: skip

    run.train(**settings)
    drawn = [np.asarray(Image.open(path), int) for path in sorted(run.workspace.rglob("0 - */*.png"))]
    image = (draw or by_pipeline)(run.output)
    # one level of 256 for rounding; before the training it was another picture
    assert np.abs(np.asarray(image, int) - drawn[-1]).max() <= 1
    assert np.abs(np.asarray(image, int) - drawn[0]).max() > 1


def goes_on_from_a_file(make_run: Any, family: Any, settings: dict, layer: str) -> None:
    """A run that continues a LoRA of another, with steps of size zero: the file comes back as it was.

    Args:
        make_run: the fixture.
        family: class of the model.
        settings: of both.
        layer: that the first run has moved.
    """
    first, second = make_run("first"), make_run("second")
    first.train(**settings)
    second.train(**{**settings, "lora_model_name": str(first.output), "learning_rate": 0.0})
    model = family.load(TrainConfig.from_dict(settings), torch.device("cpu"))
    deltas = []
    for run in (first, second):
        layers = read_adapter(run.output).fit(model.adapter_naming(), model.components)["transformer"]
        deltas.append({name: parts["lora_up.weight"].flatten(1) @ parts["lora_down.weight"].flatten(1) * parts["alpha"]
                       / len(parts["lora_down.weight"]) for name, parts in layers.items()})  # fmt: skip
    assert deltas[0].keys() == deltas[1].keys()
    for name, found in deltas[0].items():
        torch.testing.assert_close(deltas[1][name], found, atol=1e-6, rtol=1e-5)
    assert deltas[0][layer].abs().max() > 1e-3


def part_of_text_encoder_is_saved(family: Any, folder: Path, file: Path, target: Path, prompts: list[str]) -> Any:
    """Saves a model whose text encoder came from a file of its own, of which only a part is loaded.

    Args:
        family: class of the model.
        folder: of the base model.
        file: of the text encoder.
        target: where the model is saved in diffusers' layout.
        prompts: are read by the saved text encoder as by the first one.

    Returns:
        The saved model as a pipeline of diffusers.
    """
    options = {"model_type": str(family.model_types[0])}
    config = TrainConfig.from_dict({
        **options, "base_model_name": str(folder), "text_encoder": {"model_name": str(file), "train": False},
        "training_method": "FINE_TUNE", "output_model_format": "DIFFUSERS", "output_dtype": "FLOAT_32",
        "output_model_destination": str(target), "concepts": [],
    })  # fmt: skip
    model = family.load(config, torch.device("cpu"))
    save_trained(target, make_trained(model, config, lambda text: None), model, config, lambda text: None)
    assert find_model_type(TrainConfig.from_dict({"base_model_name": str(target)})) == options["model_type"]
    again = family.load(TrainConfig.from_dict({**options, "base_model_name": str(target)}), torch.device("cpu"))
    found, expected = (own.encode_captions(prompts)["hidden"] for own in (again, model))
    assert torch.equal(found, expected)
    return DiffusionPipeline.from_pretrained(target)


def flow_options(folder: Path | str, model_type: str, **changes: Any) -> dict:
    """Settings of a short run of a family with flow matching, whose text encoders are not trained."""
    return {
        "base_model_name": str(folder), "model_type": model_type, "output_model_format": "COMFY_LORA",
        "transformer": {"gradient_checkpointing": False}, "unet": {}, "text_encoder": {"train": False},
        "timestep_distribution": "LOGIT_NORMAL", "optimizer": SCALED, "learning_rate": 0.03, **changes,
    }  # fmt: skip


def loss_falls(run: Any, settings: dict) -> Any:
    """Runs for 32 steps of 2 images; returns the trainer."""
    trainer = run.trainer(**settings, epochs=8)
    trainer.run()
    losses = torch.tensor(list(trainer.progress.losses))
    # means of 16 images each: their noise differs by a few per cent, the loss by more
    assert len(losses) == 32 and losses[-8:].mean() < 0.8 * losses[:8].mean()
    return trainer


def every_layer_is_in_the_file(run: Any, trainer: Any) -> None:
    assert len(read_adapter(run.output).layers) == len(trainer.model.adapter_naming().write["COMFY_LORA"])


def quantized_base_trains(run: Any, settings: dict, weights: str, paths: Collection[str], checkpoints: bool) -> Any:
    """It trains, draws and saves; and the base's layers really are in that format.

    Args:
        run: of `make_run`.
        settings: with one sample.
        weights: the format of denoiser and text encoder.
        paths: of layers of the denoiser that are large enough.
        checkpoints: whether gradients are checkpointed.

    Returns:
        the trainer.
    """
    denoiser = model_families()[ModelType(settings["model_type"])].trainable_components[0]
    trainer = run.trainer(**settings | {
        "epochs": 1, "train_dtype": "BFLOAT_16", "sample_after": 1, "sample_after_unit": "EPOCH",
        denoiser: {"weight_dtype": weights, "gradient_checkpointing": checkpoints},
        "text_encoder": {"train": False, "weight_dtype": weights},
    })  # fmt: skip
    trainer.run()
    for path in paths:
        layer = trainer.model.denoiser.get_submodule(path)
        assert isinstance(layer, QuantizedLinear) and layer.data_type == weights
    assert len(list(run.workspace.rglob("0 - */*.jpg"))) == 2
    return trainer


def layers_that_wait_change_nothing(make_run: Any, settings: dict) -> None:
    """A run whose layers wait elsewhere ends in the tensors of one whose layers do not."""
    digests = []
    for fraction in (0.0, 0.7):
        run = make_run(f"{fraction}")
        transformer = settings["transformer"] | {"gradient_checkpointing": True, "offload_fraction": fraction}
        # both are the CPU's memory, but to layers that wait they are two
        run.train(**settings | {"epochs": 1, "transformer": transformer, "temp_device": "cpu:0"})
        digests.append([tensor for _, tensor in sorted(load_file(run.output).items())])
    assert all(map(torch.equal, *digests))


def prior_images_change_nothing(run: Any, settings: dict, concept: Path) -> None:
    """Fresh adapters are the model itself: with prior images alone loss and gradient are exactly zero."""
    listed = [{"path": str(concept), "type": "PRIOR_PREDICTION"}]
    rule = {"optimizer": {"optimizer": "ADAMW", "weight_decay": 0.0}}
    run.train(**settings | {"epochs": 1, "concepts": listed} | rule)
    assert [(step["loss"], step["gradient_norm"]) for step in run.of_kind("step")] == [(0, 0)] * 4


def problems_of_preset(run: Any, preset: dict) -> tuple[dict[str, str], list[str]]:
    """Options of another program's preset that are refused, and why; and what is told beside. In folders of a run."""
    told: list[str] = []
    listed = train_config_from_dict(run.options()).model_dump(mode="json")["concepts"]
    # a folder has no ending
    output = run.output.with_suffix("") if preset.get("output_model_format") == "DIFFUSERS" else run.output
    places = {
        "concepts": listed, "workspace_dir": str(run.workspace), "output_model_destination": str(output),
        "train_device": "cpu", "temp_device": "cpu",
    }  # fmt: skip
    config = train_config_from_dict({**preset, **places}, warn=told.append)
    return {problem.path: problem.text for problem in run_problems(config, told.append)}, told


# float32 through a dozen layers
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def each_caption_is_as_it_is_alone(model: Any, together: Mapping[str, Tensor], captions: list[str]) -> None:
    """A batch of captions is each of them alone, and what fills it up.

    Args:
        model: encodes them again.
        together: `encode_captions` of all of them.
        captions: of different lengths.
    """
    for place, caption in enumerate(captions):
        alone, n = model.encode_captions([caption]), int(together["mask"][place].sum())
        assert alone["hidden"].shape[1] == n and alone["mask"].all()
        torch.testing.assert_close(together["hidden"][place, :n], alone["hidden"][0], **CLOSE)
    assert torch.equal(model.encode_captions(captions)["mask"], together["mask"])


def what_fills_captions_up_changes_nothing(model: Any, pixels: Tensor, captions: list[str]) -> None:
    """The prediction for the first caption, alone and filled up to the length of the second.

    Args:
        model: of a family with masks of captions.
        pixels: `[1, 3, H, W]`.
        captions: two, the second longer.
    """
    clean, texts = model.encode_images(pixels), model.encode_captions(captions)
    short = {name: tensor[:1] for name, tensor in texts.items()}
    alone = model.encode_captions(captions[:1])
    assert short["hidden"].shape[1] > alone["hidden"].shape[1]
    with torch.no_grad():
        found, expected = (model.predict(clean, own, torch.Generator().manual_seed(1)) for own in (short, alone))
    torch.testing.assert_close(found.predicted, expected.predicted, **CLOSE)


def target_leads_to_the_clean_latents(scheduler: Any, prediction: Any, noisy: Tensor, clean: Tensor) -> None:
    """The scheduler's own step to σ = 0 along the target gives the clean latents, for each of a batch."""
    for place in range(len(clean)):
        scheduler.sigmas = torch.stack([prediction.sigma[place], torch.zeros(())])
        scheduler._step_index = 0
        step = scheduler.step(prediction.target[place], None, noisy[place], return_dict=False)[0]
        torch.testing.assert_close(step, clean[place], **CLOSE)


def same_picture(found: Image.Image, expected: Image.Image) -> None:
    """The same numbers, of which rounding to 256 levels may differ by one; and not a grey image."""
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 1
    assert np.asarray(found).std() > 1


def text_encoder_is_freed_before_the_transformer_comes(
    load: Callable[..., Any], sample: SampleConfig, pixels: Tensor
) -> None:
    """Also where the VAE has another format than the transformer.

    Args:
        load: gives a model of these options.
        sample: one image.
        pixels: `[b, 3, H, W]`.
    """
    model = load(vae={"weight_dtype": "FLOAT_32"}, transformer={"weight_dtype": "BFLOAT_16"})
    model.prompts(sample)
    model.encode_images(pixels)
    assert set(model.components.loaded) == {"text_encoder", "vae"}
    model.rest()
    assert "text_encoder" not in model.components.loaded
    assert model.sample(sample, 1, lambda *_: None).size == (sample.width, sample.height)
    assert "text_encoder" not in model.components.loaded and model.transformer.dtype == torch.bfloat16


def checkpoints_give_the_same_gradients(load: Callable[[], Any], layer: str, latents: Tensor, width: int = 16) -> None:
    """With a caption that is filled up.

    Args:
        load: gives a model.
        layer: of the transformer, through which captions go.
        latents: `[2, c, h, w]`.
        width: of captions.
    """
    gradients = []
    for enabled in (False, True):
        model = load()
        model.set_gradient_checkpointing("transformer", enabled)
        weight = model.transformer.get_submodule(layer).weight.requires_grad_(True)
        conditions = {"hidden": torch.ones(2, 4, width), "mask": torch.tensor([[True] * 4, [True, True, False, False]])}
        prediction = model.predict(latents, conditions, torch.Generator().manual_seed(1))
        (prediction.predicted - prediction.target).square().mean().backward()
        gradients.append(weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)
