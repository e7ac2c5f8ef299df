"""Whole runs on a small Qwen-Image: kinds of training, resume, formats of weights, and layers that wait elsewhere."""

from functools import partial

from modules.model.QwenModel import QwenModel
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


options = partial(flow_options, model_type="QWEN")


@pytest.mark.parametrize("kind", KINDS)
def test_loss_falls(make_run, qwen_folder, kind):
    run = make_run()
    trainer = loss_falls(run, options(qwen_folder, **KINDS[kind]))
    if kind != "full":
        every_layer_is_in_the_file(run, trainer)
        return
    # the file is the trained transformer for ComfyUI and diffusers, whose layout is the same
    found, expected = load_file(run.output), trainer.model.transformer.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_resumed_run_has_the_same_bytes(make_run, qwen_folder):
    settings = options(
        qwen_folder, epochs=2, samples=[SAMPLE], sample_after=3, sample_after_unit="STEP", masked_training=True,
        loss_weight_fn="SIGMA", offset_noise_weight=0.05, dynamic_timestep_shifting=True,
    )  # fmt: skip
    same_bytes_after_a_stop(make_run, settings)


def test_a_run_s_file_loads_in_diffusers(make_run, qwen_folder):
    settings = options(qwen_folder, samples=[SAMPLE], **DRAWN)
    # its pipeline has another name for guidance, and takes no notice of the usual one
    diffusers_draws_the_same(make_run(), qwen_folder, settings, true_cfg_scale=3.0, negative_prompt="")


def test_training_goes_on_from_a_file(make_run, qwen_folder):
    settings = options(qwen_folder, epochs=1, output_model_format="KOHYA_LORA")
    goes_on_from_a_file(make_run, QwenModel, settings, "transformer_blocks.0.attn.to_k")


@pytest.mark.parametrize(("weights", "kind"), [("INT_8", "LoRA"), ("FLOAT_8", "DoRA"), ("NFLOAT_4", "OFT")])
def test_quantized_base(make_run, wide_qwen_folder, weights, kind):
    """It trains, draws and saves; and the base's layers really are in that format."""
    run, settings = make_run(), options(wide_qwen_folder, samples=[SAMPLE], **KINDS[kind])
    paths = ("transformer_blocks.1.attn.to_q", "transformer_blocks.1.img_mod.1")
    trainer = quantized_base_trains(run, settings, weights, paths, checkpoints=False)
    every_layer_is_in_the_file(run, trainer)


def test_layers_that_wait_elsewhere_change_nothing(make_run, qwen_folder, monkeypatch):
    # weights stand at odd addresses of their file, copies of them do not, and products are rounded by that
    stored = QwenModel.stored_component
    monkeypatch.setattr(QwenModel, "stored_component", lambda *own: stored(*own)._apply(lambda tensor: tensor.clone()))
    layers_that_wait_change_nothing(make_run, options(qwen_folder))


def test_prior_images_change_nothing(make_run, qwen_folder, mini_concept):
    prior_images_change_nothing(make_run(), options(qwen_folder), mini_concept)


# as OneTrainer's presets `QwenImage/#qwen …` have them (August 2026)
ONETRAINER = {
    "base_model_name": "Qwen/Qwen-Image", "batch_size": 2, "learning_rate": 0.0003, "model_type": "QWEN",
    "output_model_format": "DIFFUSERS_LORA", "resolution": "512", "training_method": "LORA",
    "text_encoder": {"train": False, "weight_dtype": "FLOAT_8"}, "vae": {"weight_dtype": "FLOAT_32"},
    "train_dtype": "BFLOAT_16", "weight_dtype": "BFLOAT_16", "output_dtype": "BFLOAT_16",
    "timestep_distribution": "LOGIT_NORMAL", "layer_filter": "attn,img_mlp,txt_mlp", "layer_filter_preset": "attn-mlp",
    "quantization": {"layer_filter": "transformer_block", "layer_filter_preset": "blocks"},
}  # fmt: skip
WAITING = {"gradient_checkpointing": "CPU_OFFLOADED", "dataloader_threads": 1}
FINETUNE = {
    "learning_rate": 1e-5, "output_model_format": "ORIGINAL_TRANSFORMER", "training_method": "FINE_TUNE",
    "optimizer": {"optimizer": "ADAFACTOR"},
    "optimizer_defaults": {"ADAFACTOR": {
        "optimizer": "ADAFACTOR", "fused_back_pass": True, "beta1": None, "clip_threshold": 1.0, "decay_rate": -0.8,
        "eps": 1e-30, "eps2": 0.001, "relative_step": False, "scale_parameter": False, "stochastic_rounding": True,
        "warmup_init": False, "weight_decay": 0.0,
    }},
    "layer_filter": "transformer_block", "layer_filter_preset": "blocks", "quantization": {},
}  # fmt: skip
PRESETS = {
    "LoRA 16GB": {**WAITING, "layer_offload_fraction": 0.5, "transformer": {"train": True, "weight_dtype": "FLOAT_8"}},
    "LoRA 24GB": {"transformer": {"train": True, "weight_dtype": "FLOAT_8", "offload_fraction": 0.1}},
    "Finetune 16GB": {
        **FINETUNE, "transformer": {"train": True, "weight_dtype": "BFLOAT_16", "offload_fraction": 0.75}
    },
    "Finetune 24GB": {
        **FINETUNE, **WAITING, "layer_offload_fraction": 0.55,
        "transformer": {"train": True, "weight_dtype": "BFLOAT_16"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_onetrainer_s_presets(make_run, name):
    """Those of full weights let layers wait that are trained, which is refused here."""
    found, told = problems_of_preset(make_run(), {**ONETRAINER, **PRESETS[name]})
    assert [*found] == (["transformer.offload_fraction"] if name == "Finetune 16GB" else [])
    # old spellings, which a file without a version is not taken to mean; and steps may be too small for bfloat16
    assert [line.split(":")[0] for line in told] == [
        *(["config"] if "layer_offload_fraction" in PRESETS[name] else []),
        *(["transformer.weight_dtype"] if "Finetune" in name else []),
    ]
