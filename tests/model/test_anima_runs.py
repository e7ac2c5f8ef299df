"""Whole runs on a small Anima: kinds of training, resume, formats of weights, and layers that wait elsewhere."""

import json
from functools import partial
from pathlib import Path

from modules.model.AnimaModel import AnimaModel
from modules.model.recognize_model import find_model_type
from modules.util.config.TrainConfig import TrainConfig
from tests.model.anima_base import loaded_anima, masks_are_scaled, native_tensors
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
from tests.model.test_anima_files import doubled
from tests.model.test_qwen_runs import FINETUNE, ONETRAINER

import torch

import pytest
from safetensors.torch import load_file, save_file

options = partial(flow_options, model_type="ANIMA")


@pytest.mark.parametrize("kind", [*KINDS, *PAIR_KINDS])
def test_loss_falls(make_run, anima_folder, anima_pipeline, kind):
    run = make_run()
    trainer = loss_falls(run, options(anima_folder, **{**KINDS, **PAIR_KINDS}[kind]))
    if kind != "full":
        every_layer_is_in_the_file(run, trainer)
        return
    # the file is the trained transformer in the layout of the original code, beside the base's text conditioner
    expected = native_tensors(trainer.model.transformer, "net.", anima_pipeline.text_conditioner)
    found = load_file(run.output)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_full_weights_in_bfloat16_as_a_folder(make_run, anima_folder, anima_pipeline, tmp_path, elsewhere):
    """diffusers loads it. A text conditioner out of the transformer's file is in it, and not the base's."""
    run, conditioner = make_run(), anima_pipeline.text_conditioner
    transformer = {"weight_dtype": "BFLOAT_16", "gradient_checkpointing": True}
    if elsewhere:
        tensors = native_tensors(anima_pipeline.transformer)
        tensors |= {f"net.llm_adapter.{name}": tensor for name, tensor in doubled(conditioner).items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "anima.safetensors")
        transformer["model_name"] = str(tmp_path / "anima.safetensors")
    folder = {"output_model_format": "DIFFUSERS", "output_model_destination": str(run.workspace / "whole")}
    trainer = run.trainer(**options(anima_folder, epochs=1, **KINDS["full"] | folder | {"transformer": transformer}))
    trainer.run()
    whole = run.workspace / "whole"
    index = json.loads((whole / "modular_model_index.json").read_text())
    assert str(anima_folder) not in str(index) and not (whole / "model_index.json").exists()
    assert find_model_type(TrainConfig.from_dict({"base_model_name": str(whole)})) == "ANIMA"
    pipeline, trained = loaded_anima(whole), trainer.model.transformer.state_dict()
    before = anima_pipeline.transformer.state_dict()
    for name, tensor in pipeline.transformer.state_dict().items():
        assert torch.equal(tensor, trained[name].float()) and not torch.equal(tensor, before[name])
    expected = doubled(conditioner) if elsewhere else conditioner.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in pipeline.text_conditioner.state_dict().items())


def test_resumed_run_has_the_same_bytes(make_run, anima_folder):
    settings = options(
        anima_folder, epochs=2, samples=[SAMPLE], sample_after=3, sample_after_unit="STEP", masked_training=True,
        loss_weight_fn="SIGMA", offset_noise_weight=0.05, timestep_shift=3.0,
    )  # fmt: skip
    same_bytes_after_a_stop(make_run, settings)


def test_a_run_s_file_loads_in_diffusers(make_run, anima_folder):
    def draw(file: Path):
        pipeline = loaded_anima(anima_folder)
        pipeline.load_lora_weights(str(file))
        pipeline.guider.guidance_scale = 3.0
        with masks_are_scaled():
            return pipeline(
                prompt="a red shape", negative_prompt="", width=32, height=32, num_inference_steps=2,
                generator=torch.Generator().manual_seed(3), output="images",
            )[0]  # fmt: skip

    settings = options(anima_folder, samples=[SAMPLE], **DRAWN)
    diffusers_draws_the_same(make_run(), anima_folder, settings, draw)


def test_training_goes_on_from_a_file(make_run, anima_folder):
    settings = options(anima_folder, epochs=1, output_model_format="KOHYA_LORA")
    goes_on_from_a_file(make_run, AnimaModel, settings, "transformer_blocks.0.attn2.to_k")


@pytest.mark.parametrize(("weights", "kind"), [("INT_8", "LoRA"), ("FLOAT_8", "DoRA"), ("NFLOAT_4", "OFT")])
def test_quantized_base(make_run, wide_anima_folder, weights, kind):
    """It trains, draws and saves; and the base's layers really are in that format."""
    run, settings = make_run(), options(wide_anima_folder, samples=[SAMPLE], **KINDS[kind])
    settings["text_conditioner"] = {"weight_dtype": weights}
    paths = ("transformer_blocks.1.attn1.to_q", "transformer_blocks.0.ff.net.2")
    trainer = quantized_base_trains(run, settings, weights, paths, checkpoints=weights == "INT_8")
    every_layer_is_in_the_file(run, trainer)


def test_layers_that_wait_change_nothing(make_run, anima_folder):
    layers_that_wait_change_nothing(make_run, options(anima_folder))


def test_prior_images_change_nothing(make_run, anima_folder, mini_concept):
    prior_images_change_nothing(make_run(), options(anima_folder), mini_concept)


# as OneTrainer's presets `Anima/#anima …` have them (August 2026), where they differ from those of Qwen-Image
OF_ANIMA = {
    "base_model_name": "circlestone-labs/Anima-Base-v1.0-Diffusers", "model_type": "ANIMA", "compile": True,
    "layer_filter": "attn1,attn2,ff",
    "quantization": {"layer_filter": "attn1,attn2,ff", "layer_filter_preset": "attn-mlp"},
}  # fmt: skip
PRESETS = {
    "LoRA": {
        "learning_rate": 3e-5, "output_model_format": "KOHYA_LORA",
        "transformer": {"train": True, "weight_dtype": "INT_W8A8"},
    },
    "Finetune": {**FINETUNE, "learning_rate": 1e-6, "transformer": {"train": True, "weight_dtype": "BFLOAT_16"}},
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_onetrainer_s_presets(make_run, name):
    """Full weights run as they are; LoRA computes in 8 bits there, and runs with `INT_8`."""
    run, preset, full = make_run(), {**ONETRAINER, **OF_ANIMA, **PRESETS[name]}, name == "Finetune"
    problems, told = problems_of_preset(run, preset)
    assert list(problems) == ([] if full else ["transformer.weight_dtype"])
    # steps may be too small for bfloat16
    assert [line.split(":")[0] for line in told] == (["transformer.weight_dtype"] if full else [])
    if not full:
        assert "INT_W8A8, which is not supported" in problems["transformer.weight_dtype"]
        assert not problems_of_preset(run, preset | {"transformer": {"weight_dtype": "INT_8"}})[0]
