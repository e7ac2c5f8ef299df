"""Whole runs on a small Krea 2: kinds of training, resume, formats of weights, and layers that wait elsewhere."""

import json
from functools import partial

from modules.model.Krea2Model import Krea2Model
from tests.model.family_checks import (
    DRAWN,
    KINDS,
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
from tests.model.krea2_base import LAYERS, native_tensors
from tests.model.test_qwen_runs import FINETUNE, ONETRAINER

import torch

import pytest
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

options = partial(flow_options, model_type="KREA_2")


@pytest.mark.parametrize("kind", KINDS)
def test_loss_falls(make_run, krea2_folder, kind):
    run = make_run()
    trainer = loss_falls(run, options(krea2_folder, **KINDS[kind]))
    if kind != "full":
        every_layer_is_in_the_file(run, trainer)
        return
    # the file is the trained transformer in the layout of the original code
    found, expected = load_file(run.output), native_tensors(trainer.model.transformer)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_full_weights_in_bfloat16_as_a_folder(make_run, krea2_folder):
    """Norms are trained in float32 beside them; diffusers loads the folder, whose options are those of the base."""
    run = make_run()
    transformer = {"weight_dtype": "BFLOAT_16", "gradient_checkpointing": True}
    folder = {"output_model_format": "DIFFUSERS", "output_model_destination": str(run.workspace / "whole")}
    trainer = run.trainer(**options(krea2_folder, epochs=1, **KINDS["full"] | folder | {"transformer": transformer}))
    trainer.run()
    trained = trainer.model.transformer.state_dict()
    assert {name: tensor.dtype for name, tensor in trained.items()} == {
        name: torch.float32 if "norm" in name else torch.bfloat16 for name in trained
    }
    index = json.loads((run.workspace / "whole" / "model_index.json").read_text())
    assert index["text_encoder_select_layers"] == list(LAYERS)
    pipeline = DiffusionPipeline.from_pretrained(run.workspace / "whole")
    before = native_tensors(DiffusionPipeline.from_pretrained(krea2_folder).transformer)
    after = native_tensors(pipeline.transformer)
    assert all(torch.equal(tensor, trained[name].float()) for name, tensor in pipeline.transformer.state_dict().items())
    assert all(not torch.equal(after[name], before[name].bfloat16().float()) for name in before)


def test_resumed_run_has_the_same_bytes(make_run, krea2_folder):
    settings = options(
        krea2_folder, epochs=2, samples=[SAMPLE], sample_after=3, sample_after_unit="STEP", masked_training=True,
        loss_weight_fn="SIGMA", offset_noise_weight=0.05, dynamic_timestep_shifting=True,
    )  # fmt: skip
    same_bytes_after_a_stop(make_run, settings)


def test_a_run_s_file_loads_in_diffusers(make_run, krea2_folder):
    # guidance of 3 is diffusers' 2
    settings = options(krea2_folder, samples=[SAMPLE], **DRAWN)
    diffusers_draws_the_same(make_run(), krea2_folder, settings, negative_prompt="")


def test_training_goes_on_from_a_file(make_run, krea2_folder):
    settings = options(krea2_folder, epochs=1, output_model_format="KOHYA_LORA")
    goes_on_from_a_file(make_run, Krea2Model, settings, "transformer_blocks.0.attn.to_k")


@pytest.mark.parametrize(("weights", "kind"), [("INT_8", "LoRA"), ("FLOAT_8", "DoRA"), ("NFLOAT_4", "OFT")])
def test_quantized_base(make_run, wide_krea2_folder, weights, kind):
    """It trains, draws and saves; and the base's layers really are in that format."""
    run, settings = make_run(), options(wide_krea2_folder, samples=[SAMPLE], **KINDS[kind])
    paths = ("transformer_blocks.1.attn.to_q", "text_fusion.layerwise_blocks.0.ff.up")
    trainer = quantized_base_trains(run, settings, weights, paths, checkpoints=False)
    every_layer_is_in_the_file(run, trainer)


def test_layers_that_wait_elsewhere_change_nothing(make_run, krea2_folder):
    layers_that_wait_change_nothing(make_run, options(krea2_folder))


def test_prior_images_change_nothing(make_run, krea2_folder, mini_concept):
    prior_images_change_nothing(make_run(), options(krea2_folder), mini_concept)


# as OneTrainer's presets `Krea 2/#krea2 …` have them (August 2026), where they differ from those of Qwen-Image
OF_KREA = {
    "base_model_name": "krea/Krea-2-Raw", "model_type": "KREA_2", "layer_filter": "attn,ff", "compile": True,
    "attention_mechanism": "CUDNN", "quantization": {"layer_filter": "attn,ff", "layer_filter_preset": "attn-mlp"},
}  # fmt: skip
OF_BLOCKS = {"layer_filter": "transformer_blocks", "layer_filter_preset": "blocks"}
OF_WEIGHTS = {**FINETUNE, **OF_BLOCKS, "quantization": OF_BLOCKS}
PRESETS = {
    "LoRA 16GB": {"transformer": {"train": True, "weight_dtype": "INT_W8A8", "offload_fraction": 0.3}},
    "LoRA 24GB": {"transformer": {"train": True, "weight_dtype": "INT_W8A8"}},
    "Finetune 16GB": {**OF_WEIGHTS, "transformer": {"weight_dtype": "BFLOAT_16", "offload_fraction": 0.8}},
    "Finetune 24GB": {**OF_WEIGHTS, "transformer": {"weight_dtype": "BFLOAT_16", "offload_fraction": 0.5}},
}


@pytest.mark.parametrize("name", PRESETS)
def test_onetrainer_s_presets(make_run, name):
    """None can be run as it is: LoRA computes in 8 bits there, and full weights let layers wait that are trained."""
    run, preset, full = make_run(), {**ONETRAINER, **OF_KREA, **PRESETS[name]}, "Finetune" in name
    problems, told = problems_of_preset(run, preset)
    # the first is a matter of the CPU
    assert list(problems) == ["attention_mechanism", f"transformer.{'offload_fraction' if full else 'weight_dtype'}"]
    assert ("only frozen layers can wait" if full else "INT_W8A8, which is not supported") in str(problems)
    # steps may be too small for bfloat16
    assert [line.split(":")[0] for line in told] == (["transformer.weight_dtype"] if full else [])
    # with another of these formats, and no waiting layers
    changed = {"transformer": {"weight_dtype": "BFLOAT_16" if full else "INT_8"}, "attention_mechanism": "SDP"}
    assert not problems_of_preset(run, preset | changed)[0]
