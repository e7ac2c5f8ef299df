"""What whole runs and files of every family keep to; a family's tests give their settings."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from modules.model.recognize_model import find_model_type
from modules.model.unet_keys import layer_paths
from modules.modelSaver.AdapterFile import read_adapter
from modules.module.AdapterSet import AdapterSet
from modules.trainer.trained import make_trained, save_trained
from modules.util.AdapterNaming import AdapterNaming
from modules.util.config.TrainConfig import TrainConfig

import torch
from torch import nn

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

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


def diffusers_draws_the_same(run: Any, folder: Path, settings: dict, **of_pipeline: Any) -> None:
    """The file of a run gives diffusers the picture that the run itself drew at its end.

    Args:
        run: of `make_run`.
        folder: of the base model.
        settings: of the run, with `DRAWN` and one sample.
        of_pipeline: what the family's pipeline is told beside.
    """
    run.train(**settings)
    drawn = [np.asarray(Image.open(path), int) for path in sorted(run.workspace.rglob("0 - */*.png"))]
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(str(run.output))
    image = pipeline(
        prompt="a red shape", width=32, height=32, num_inference_steps=2, guidance_scale=2.0,
        generator=torch.Generator().manual_seed(3), **of_pipeline,
    ).images[0]  # fmt: skip
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
    for name, delta in deltas[0].items():
        torch.testing.assert_close(deltas[1][name], delta, atol=1e-6, rtol=1e-5)
    assert deltas[0][layer].abs().max() > 1e-3


def comes_back(
    path: Path, naming: AdapterNaming, transformer: nn.Module, adapters: AdapterSet, left_out: Collection[str] = ()
) -> None:
    """A file holds the adapters of all layers that were written into it.

    Args:
        path: the file.
        naming: of the family.
        transformer: the base.
        adapters: that were written.
        left_out: layers that adapters of this kind can't change, such as a single output, which can't be rotated.
    """
    found = read_adapter(path).fit(naming, {"transformer": transformer})["transformer"]
    assert found.keys() == adapters.adapters.keys() == set(layer_paths(transformer)) - {*left_out}
    for name, adapter in AdapterSet.from_parts("transformer", transformer, found).adapters.items():
        expected = adapters.adapters[name].merged_delta()
        assert expected.abs().max() > 1e-3
        # a few float32 roundings of weights below 1
        torch.testing.assert_close(adapter.merged_delta(), expected, atol=2e-6, rtol=1e-5)


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
