"""Whole runs on a small Chroma: every kind of training, resume, formats of weights, and OneTrainer's own presets."""

from functools import partial

from modules.model.ChromaModel import ChromaModel
from modules.modelSaver.AdapterFile import read_adapter
from modules.util.config.TrainConfig import TrainConfig
from tests.model.family_checks import (
    DRAWN,
    KINDS,
    SAMPLE,
    diffusers_draws_the_same,
    flow_options,
    goes_on_from_a_file,
    layers_that_wait_change_nothing,
    loss_falls,
    problems_of_preset,
    quantized_base_trains,
    same_bytes_after_a_stop,
)

import torch

import pytest
from safetensors.torch import load_file

SAMPLE = SAMPLE | {"cfg_scale": 2.0}
# of the network that gives the modulations
MODULATION = "distilled_guidance_layer.norms.1.scale"


options = partial(flow_options, model_type="CHROMA_1")


@pytest.mark.parametrize("kind", KINDS)
def test_loss_falls(make_run, chroma_folder, kind):
    run = make_run()
    trainer = loss_falls(run, options(chroma_folder, **KINDS[kind]))
    if kind != "full":
        # every layer of the model, by names that ComfyUI knows
        file = read_adapter(run.output)
        assert {"diffusion_model.final_layer.linear", "diffusion_model.distilled_guidance_layer.layers.1.in_layer"} <= {
            *file.layers
        }
        assert ("transformer.single_transformer_blocks.1.proj_mlp" in file.layers) == (kind != "LoRA")
        # which turns inputs, and is for a node of ours
        assert any("ComfyUI" in text for text in run.warnings()) == (kind == "OFT")
        return
    # the file holds the trained transformer in the original layout, and loads again
    assert MODULATION in load_file(run.output)
    again = options(chroma_folder, transformer={"model_name": str(run.output)})
    found = ChromaModel.load(TrainConfig.from_dict(again), torch.device("cpu")).components["transformer"].state_dict()
    for name, tensor in trainer.model.transformer.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_resumed_run_has_the_same_bytes(make_run, chroma_folder):
    settings = options(
        chroma_folder, epochs=2, samples=[SAMPLE], sample_after=3, sample_after_unit="STEP", masked_training=True,
        loss_weight_fn="SIGMA", dynamic_timestep_shifting=True,
    )  # fmt: skip
    same_bytes_after_a_stop(make_run, settings)


def test_a_run_s_file_loads_in_diffusers(make_run, chroma_folder):
    # texts that leave no padding, which diffusers' own pipeline would not hide
    other = "a blue dog"
    sample = {**SAMPLE, "negative_prompt": other}
    settings = options(chroma_folder, samples=[sample], text_encoder_sequence_length=4, **DRAWN)
    diffusers_draws_the_same(make_run(), chroma_folder, settings, negative_prompt=other, max_sequence_length=4)


def test_training_goes_on_from_a_file(make_run, chroma_folder):
    """From fused layers, which have the sum of the ranks that were joined."""
    settings = options(chroma_folder, epochs=1, output_model_format="KOHYA_LORA")
    goes_on_from_a_file(make_run, ChromaModel, settings, "single_transformer_blocks.0.attn.to_k")


@pytest.mark.parametrize(("weights", "kind"), [("INT_8", "LoRA"), ("FLOAT_8", "DoRA"), ("NFLOAT_4", "OFT")])
def test_quantized_base(make_run, wide_chroma_folder, weights, kind):
    """It trains, draws and saves; and the base's layers really are in that format."""
    run, settings = make_run(), options(wide_chroma_folder, samples=[SAMPLE], **KINDS[kind])
    paths = ("single_transformer_blocks.0.proj_mlp", "distilled_guidance_layer.layers.0.linear_1")
    quantized_base_trains(run, settings, weights, paths, checkpoints=True)
    assert read_adapter(run.output).kind.base == {"LoRA": "LoRA", "DoRA": "LoRA", "OFT": "OFT"}[kind]


def test_layers_that_wait_elsewhere_change_nothing(make_run, chroma_folder):
    layers_that_wait_change_nothing(make_run, options(chroma_folder))


# what OneTrainer's presets of this family have in common, and what differs: `Chroma/#chroma …` of September 2026
COMMON = {
    "base_model_name": "lodestones/Chroma1-HD", "batch_size": 2, "model_type": "CHROMA_1", "resolution": "512",
    "vae": {"weight_dtype": "FLOAT_32"}, "train_dtype": "BFLOAT_16", "weight_dtype": "BFLOAT_16",
    "output_dtype": "BFLOAT_16", "timestep_distribution": "INVERTED_PARABOLA", "noising_weight": 7.7,
    "quantization": {"layer_filter": "transformer_block", "layer_filter_preset": "blocks"},
}  # fmt: skip
LORA = {
    "learning_rate": 0.0003, "output_model_format": "DIFFUSERS_LORA", "training_method": "LORA",
    "layer_filter": "attn,ff.net,proj_mlp", "layer_filter_preset": "attn-mlp",
}  # fmt: skip
ADAFACTOR = {
    "optimizer": "ADAFACTOR", "fused_back_pass": True, "beta1": None, "clip_threshold": 1.0, "decay_rate": -0.8,
    "eps": 1e-30, "eps2": 0.001, "relative_step": False, "scale_parameter": False, "stochastic_rounding": True,
    "warmup_init": False, "weight_decay": 0.0,
}  # fmt: skip
FINETUNE = {
    "learning_rate": 1e-5, "output_model_format": "ORIGINAL_TRANSFORMER", "training_method": "FINE_TUNE",
    "optimizer": {"optimizer": "ADAFACTOR"}, "optimizer_defaults": {"ADAFACTOR": ADAFACTOR},
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "weights", "text", "fraction"),
    [
        (LORA, "FLOAT_8", "FLOAT_8", 0.6), (LORA, "FLOAT_8", "BFLOAT_16", None), (LORA, "BFLOAT_16", "BFLOAT_16", None),
        (FINETUNE, "BFLOAT_16", "FLOAT_8", 0.85), (FINETUNE, "BFLOAT_16", "FLOAT_8", 0.4),
        (FINETUNE, "BFLOAT_16", "BFLOAT_16", None),
    ],
    ids=["LoRA 8GB", "LoRA 16GB", "LoRA 24GB", "Finetune 8GB", "Finetune 16GB", "Finetune 24GB"],
)  # fmt: skip
def test_onetrainer_s_presets_pass_the_checks(make_run, method, weights, text, fraction):
    waits = {"offload_fraction": fraction} if fraction else {}
    preset = {
        **COMMON, **method, **({"dataloader_threads": 1} if fraction else {}),
        "transformer": {"train": True, "weight_dtype": weights, **waits},
        "text_encoder": {"train": False, "weight_dtype": text},
    }  # fmt: skip
    found, told = problems_of_preset(make_run(), preset)
    # trained layers have to stay on the device
    assert [*found] == (["transformer.offload_fraction"] if method is FINETUNE and fraction else [])
    # what is kept for the day on which this optimizer is chosen in the window is no setting of the run
    assert bool(told) == (method is FINETUNE) and all("steps below 1/256 of a weight are lost" in line for line in told)
