"""Flux.2's joined layers and optimizers that ask for a rank: what is written can be continued, and does not grow."""

from modules.modelSaver.AdapterFile import read_adapter

import torch

import pytest

STIEFEL = {"optimizer": {"optimizer": "STIEFEL_LORA"}, "lora_init": "ORTHONORMAL"}
OPTIMIZERS = {"Stiefel": STIEFEL, "AdamW": {"optimizer": {"optimizer": "ADAMW"}}}


def options(folder, **changes) -> dict:
    return {
        "base_model_name": str(folder), "model_type": "FLUX_2", "text_encoder_sequence_length": 40,
        "output_model_format": "COMFY_LORA", "transformer": {"gradient_checkpointing": False}, "unet": {},
        "timestep_distribution": "LOGIT_NORMAL", "layer_filter_preset": "custom", "epochs": 1,
        "layer_filter": "transformer_block,proj_out", **changes,
    }  # fmt: skip


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model_format", ["COMFY_LORA", "LEGACY_LORA"])
def test_a_joined_file_is_continued_with_the_ranks_that_it_was_trained_with(
    make_run, flux2_folders, model_format, optimizer
):
    first, second = make_run("first"), make_run("second")
    settings = options(
        flux2_folders["klein"], output_model_format=model_format, lora_rank=20, lora_alpha=20.0, **OPTIMIZERS[optimizer]
    )
    first.train(**settings)
    second.train(**settings, lora_model_name=str(first.output))
    before, after = (read_adapter(run.output).layers for run in (first, second))
    assert before.keys() == after.keys()
    shapes = [{name: len(parts["lora_down.weight"]) for name, parts in layers.items()} for layers in (before, after)]
    joined = model_format == "COMFY_LORA"
    assert shapes[0] == shapes[1] and max(shapes[0].values()) == (60 if joined else 20)  # three layers side by side
    assert all(parts["lora_down.weight"].isfinite().all() for parts in after.values())
    assert all(
        not torch.equal(before[name]["lora_down.weight"], parts["lora_down.weight"]) for name, parts in after.items()
    )
    assert not [note for note in second.warnings() if "lora_model_name" in note]
    (note,) = [note for note in first.warnings() if "rank 20" in note]
    what = "→ 16, its outputs, as lora_init ORTHONORMAL allows no more"
    if optimizer != "Stiefel":
        what = "is more than its smaller side 16"
    assert note == f"transformer.proj_out: rank 20 {what}"


def test_one_of_several_joined_layers_is_continued_alone(make_run, flux2_folders):
    """The file has rows of zeros for the others, which are not trained."""
    first, second = make_run("first"), make_run("second")
    settings = options(flux2_folders["klein"], layer_filter="to_q$", layer_filter_regex=True, **OPTIMIZERS["AdamW"])
    first.train(**settings)
    second.train(**settings, lora_model_name=str(first.output))
    before, after = (read_adapter(run.output).layers for run in (first, second))
    assert {name: parts["lora_up.weight"].shape for name, parts in before.items()} == {
        name: parts["lora_up.weight"].shape for name, parts in after.items()
    }
    ups = [parts["lora_up.weight"] for parts in after.values()]
    assert len(ups) == 2 and all(up[:32].any() and not up[32:].any() for up in ups)
