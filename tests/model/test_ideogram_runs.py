"""Whole runs on a small Ideogram 4: kinds of training, resume, formats of weights, and layers that wait elsewhere."""

from functools import partial
from pathlib import Path

from modules.model.IdeogramModel import IdeogramModel
from modules.modelSaver.AdapterFile import read_adapter
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import get_parameter_info
from tests.model.family_checks import (
    DRAWN,
    KINDS,
    PAIR_KINDS,
    SAMPLE,
    diffusers_draws_the_same,
    flow_options,
    goes_on_from_a_file,
    layers_that_wait_change_nothing,
    loss_falls,
    prior_images_change_nothing,
    problems_of_preset,
    quantized_base_trains,
    same_bytes_after_a_stop,
)
from tests.model.ideogram_base import native_layers, native_tensors
from tests.model.test_qwen_runs import FINETUNE, ONETRAINER

import torch

import pytest
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

options = partial(flow_options, model_type="IDEOGRAM_4")
# a kind that can't be joined, where ComfyUI has queries, keys and values as one
APART = {"output_model_format": "LEGACY_LORA"}
KINDS = {**KINDS, "DoRA": KINDS["DoRA"] | APART, "OFT": KINDS["OFT"] | APART, **PAIR_KINDS}


def every_layer_is_in_the_file(run, trainer, joined: bool) -> None:
    layers = native_layers(trainer.model.transformer)
    expected = len(layers) if joined else sum(map(len, layers.values()))
    assert len(read_adapter(run.output).layers) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_loss_falls(make_run, ideogram_folder, kind):
    run = make_run()
    trainer = loss_falls(run, options(ideogram_folder, **KINDS[kind]))
    if kind != "full":
        every_layer_is_in_the_file(run, trainer, "output_model_format" not in KINDS[kind])
        return
    # the file is the trained transformer in the layout of the original code
    found, expected = load_file(run.output), native_tensors(trainer.model.transformer)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    # what image, captions and time come in by, and where the answer comes out
    roles = {
        name.removeprefix("transformer."): get_parameter_info(parameter).role
        for name, parameter in trainer.trained["transformer"].named_parameters().items()
    }
    first = {
        f"{name}.weight" for name in ("input_proj", "llm_cond_proj", "t_embedding.mlp_in", "embed_image_indicator")
    }
    assert {name for name, role in roles.items() if role == ParameterRole.INPUT} == first
    assert {name for name, role in roles.items() if role == ParameterRole.OUTPUT} == {"final_layer.linear.weight"}


def test_resumed_run_has_the_same_bytes(make_run, ideogram_folder):
    settings = options(
        ideogram_folder, epochs=2, samples=[SAMPLE], sample_after=3, sample_after_unit="STEP", masked_training=True,
        loss_weight_fn="SIGMA", offset_noise_weight=0.05, dynamic_timestep_shifting=True,
    )  # fmt: skip
    same_bytes_after_a_stop(make_run, settings)


def test_a_run_s_file_loads_in_diffusers(make_run, ideogram_folder):
    """Beside the second transformer, which is never trained."""

    def draw(file: Path) -> Image.Image:
        pipeline = DiffusionPipeline.from_pretrained(ideogram_folder)
        pipeline.load_lora_weights(str(file))
        return pipeline(
            prompt="a red shape", width=32, height=32, num_inference_steps=2, guidance_scale=3.0,
            guidance_schedule=None, max_sequence_length=32, generator=torch.Generator().manual_seed(3),
        ).images[0]  # fmt: skip

    settings = options(ideogram_folder, samples=[SAMPLE], **DRAWN)
    diffusers_draws_the_same(make_run(), ideogram_folder, settings, draw)


def test_a_whole_model_as_a_folder(make_run, ideogram_folder):
    """In bfloat16, with both transformers; diffusers loads it."""
    run = make_run()
    place = run.workspace / "whole"
    folder = {"output_model_format": "DIFFUSERS", "output_model_destination": str(place)}
    transformer = {"weight_dtype": "BFLOAT_16", "gradient_checkpointing": True}
    trainer = run.trainer(**options(ideogram_folder, epochs=1, **KINDS["full"] | folder | {"transformer": transformer}))
    trainer.run()
    found, before = DiffusionPipeline.from_pretrained(place), DiffusionPipeline.from_pretrained(ideogram_folder)
    trained, base = trainer.model.transformer.state_dict(), before.transformer.state_dict()
    for name, tensor in found.transformer.state_dict().items():
        assert torch.equal(tensor, trained[name].float()) and not torch.equal(tensor, base[name].bfloat16().float())
    kept = before.unconditional_transformer.state_dict()
    assert all(torch.equal(own, kept[name]) for name, own in found.unconditional_transformer.state_dict().items())


def test_training_goes_on_from_a_file(make_run, ideogram_folder):
    settings = options(ideogram_folder, epochs=1, output_model_format="KOHYA_LORA")
    goes_on_from_a_file(make_run, IdeogramModel, settings, "layers.0.attention.to_k")


@pytest.mark.parametrize(("weights", "kind"), [("INT_8", "LoRA"), ("FLOAT_8", "DoRA"), ("NFLOAT_4", "OFT")])
def test_quantized_base(make_run, wide_ideogram_folder, weights, kind):
    """It trains, draws and saves; and the base's layers really are in that format, in both transformers."""
    second = {"unconditional_transformer": {"weight_dtype": weights}}
    run, settings = make_run(), options(wide_ideogram_folder, samples=[SAMPLE], **KINDS[kind], **second)
    trainer = quantized_base_trains(run, settings, weights, ("layers.1.attention.to_q", "llm_cond_proj"), False)
    every_layer_is_in_the_file(run, trainer, kind == "LoRA")
    own = trainer.model.components["unconditional_transformer"].layers[1].feed_forward.w2
    assert own.data_type == weights


def test_layers_that_wait_elsewhere_change_nothing(make_run, ideogram_folder):
    """Those of the second transformer, too, which is put away as a whole between samples."""
    second = {"unconditional_transformer": {"offload_fraction": 1.0}}
    settings = options(ideogram_folder, samples=[SAMPLE], sample_after=1, sample_after_unit="EPOCH", **second)
    layers_that_wait_change_nothing(make_run, settings)


def test_prior_images_change_nothing(make_run, ideogram_folder, mini_concept):
    prior_images_change_nothing(make_run(), options(ideogram_folder), mini_concept)


# as OneTrainer's presets `Ideogram 4/#ideogram …` have them (August 2026), where they differ from those of Qwen-Image
OF_IDEOGRAM = {
    "base_model_name": "CalamitousFelicitousness/Ideogram-4-bf16-Diffusers", "model_type": "IDEOGRAM_4",
    "learning_rate": 5e-5, "layer_filter": "attention,feed_forward", "compile": True,
    "output_model_format": "COMFY_LORA", "text_encoder": {"train": False, "weight_dtype": "NFLOAT_4"},
    "unconditional_transformer": {"weight_dtype": "NFLOAT_4", "offload_fraction": 1.0},
    "quantization": {"layer_filter": "layers", "layer_filter_preset": "blocks"},
}  # fmt: skip
OF_BLOCKS = {"layer_filter": "layers", "layer_filter_preset": "blocks"}
OF_WEIGHTS = {**FINETUNE, **OF_BLOCKS, "quantization": OF_BLOCKS}
PRESETS = {
    "LoRA 16GB": {"transformer": {"train": True, "weight_dtype": "INT_W8A8", "offload_fraction": 0.1}},
    "LoRA 24GB": {"transformer": {"train": True, "weight_dtype": "INT_W8A8"}},
    "Finetune 16GB": {**OF_WEIGHTS, "transformer": {"weight_dtype": "BFLOAT_16", "offload_fraction": 0.6}},
    "Finetune 24GB": {**OF_WEIGHTS, "transformer": {"weight_dtype": "BFLOAT_16", "offload_fraction": 0.25}},
}


@pytest.mark.parametrize("name", PRESETS)
def test_onetrainer_s_presets(make_run, name):
    """None can be run as it is: LoRA computes in 8 bits there, and full weights let layers wait that are trained."""
    run, preset, full = make_run(), {**ONETRAINER, **OF_IDEOGRAM, **PRESETS[name]}, "Finetune" in name
    problems, told = problems_of_preset(run, preset)
    assert list(problems) == [f"transformer.{'offload_fraction' if full else 'weight_dtype'}"]
    assert ("only frozen layers can wait" if full else "INT_W8A8, which is not supported") in str(problems)
    # steps may be too small for bfloat16
    assert [line.split(":")[0] for line in told] == (["transformer.weight_dtype"] if full else [])
    # with another of these formats, and no waiting layers
    changed = {"transformer": {"weight_dtype": "BFLOAT_16" if full else "INT_8"}}
    assert not problems_of_preset(run, preset | changed)[0]
