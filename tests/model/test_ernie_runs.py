"""Whole runs on a small Ernie-Image: kinds of training, resume, formats of weights, and layers that wait elsewhere."""

from functools import partial

from modules.model.ErnieModel import ErnieModel
from tests.model.family_checks import (
    DRAWN,
    KINDS,
    PAIR_KINDS,
    SAMPLE,
    diffusers_draws_the_same,
    every_layer_is_in_the_file,
    flow_options,
    goes_on_from_a_file,
    layers_that_wait_change_nothing,
    loss_falls,
    prior_images_change_nothing,
    problems_of_preset,
    quantized_base_trains,
    same_bytes_after_a_stop,
)

import torch

import pytest
from safetensors.torch import load_file

KINDS = KINDS | PAIR_KINDS


options = partial(flow_options, model_type="ERNIE")


@pytest.mark.parametrize("kind", KINDS)
def test_loss_falls(make_run, ernie_folder, kind):
    run = make_run()
    trainer = loss_falls(run, options(ernie_folder, **KINDS[kind]))
    if kind != "full":
        every_layer_is_in_the_file(run, trainer)
        return
    # the file is the trained transformer for ComfyUI and diffusers, whose layout is the same
    found, expected = load_file(run.output), trainer.model.transformer.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_resumed_run_has_the_same_bytes(make_run, ernie_folder):
    settings = options(
        ernie_folder, epochs=2, samples=[SAMPLE], sample_after=3, sample_after_unit="STEP", masked_training=True,
        loss_weight_fn="SIGMA", offset_noise_weight=0.05, dynamic_timestep_shifting=True,
    )  # fmt: skip
    same_bytes_after_a_stop(make_run, settings)


def test_a_run_s_file_loads_in_diffusers(make_run, ernie_folder):
    settings = options(ernie_folder, samples=[SAMPLE | {"cfg_scale": 2.0}], **DRAWN)
    diffusers_draws_the_same(make_run(), ernie_folder, settings)


def test_training_goes_on_from_a_file(make_run, ernie_folder):
    settings = options(ernie_folder, epochs=1, output_model_format="KOHYA_LORA")
    goes_on_from_a_file(make_run, ErnieModel, settings, "layers.0.self_attention.to_k")


@pytest.mark.parametrize(("weights", "kind"), [("INT_8", "LoRA"), ("FLOAT_8", "DoRA"), ("NFLOAT_4", "OFT")])
def test_quantized_base(make_run, wide_ernie_folder, weights, kind):
    """It trains, draws and saves; and the base's layers really are in that format."""
    run, settings = make_run(), options(wide_ernie_folder, samples=[SAMPLE], **KINDS[kind])
    paths = ("layers.1.self_attention.to_q", "layers.1.mlp.linear_fc2")
    trainer = quantized_base_trains(run, settings, weights, paths, checkpoints=False)
    every_layer_is_in_the_file(run, trainer)


def test_layers_that_wait_elsewhere_change_nothing(make_run, ernie_folder):
    layers_that_wait_change_nothing(make_run, options(ernie_folder))


def test_prior_images_change_nothing(make_run, ernie_folder, mini_concept):
    prior_images_change_nothing(make_run(), options(ernie_folder), mini_concept)


# as OneTrainer's presets `Ernie Image/#ernie LoRA …` have them (August 2026)
ONETRAINER = {
    "base_model_name": "baidu/ERNIE-Image", "batch_size": 2, "learning_rate": 3e-4, "model_type": "ERNIE",
    "output_model_format": "DIFFUSERS_LORA", "resolution": "512", "compile": True, "training_method": "LORA",
    "text_encoder": {"train": False, "weight_dtype": "FLOAT_8"}, "vae": {"weight_dtype": "FLOAT_32"},
    "train_dtype": "BFLOAT_16", "output_dtype": "BFLOAT_16", "layer_filter": "self_attention,mlp",
    "layer_filter_preset": "attn-mlp", "quantization": {"layer_filter": "layers", "layer_filter_preset": "blocks"},
    "timestep_distribution": "LOGIT_NORMAL",
}  # fmt: skip
PRESETS = {
    "LoRA 16GB": {"transformer": {"train": True, "weight_dtype": "INT_W8A8"}},
    "LoRA 8GB": {
        "transformer": {"train": True, "weight_dtype": "INT_W8A8", "offload_fraction": 0.7}, "dataloader_threads": 1
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_onetrainer_s_presets(make_run, name):
    """They validate but for a number format that there is not here."""
    found, told = problems_of_preset(make_run(), {**ONETRAINER, **PRESETS[name]})
    # a number format that rounds inputs of layers, too
    assert ([*found], told) == (["transformer.weight_dtype"], [])
