"""Whole runs on a small HiDream: kinds of training, text encoders, resume, formats of weights, layers that wait."""

import json
from pathlib import Path

from modules.model.HiDreamModel import HiDreamModel
from modules.modelSaver.AdapterFile import read_adapter
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import get_parameter_info
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
from tests.model.test_hidream_model import ENCODERS, EXPERT, GATE, LENGTH

import torch

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImagePipeline
from safetensors.torch import load_file


def options(folder: Path | str, **changes) -> dict:
    quiet = {encoder: {"train": False, "gradient_checkpointing": False} for encoder in ENCODERS}
    own = {"model_type": "HI_DREAM_FULL", "text_encoder_3_sequence_length": LENGTH}
    return flow_options(folder, **{**own, **quiet, **changes})


@pytest.mark.parametrize("kind", [*KINDS, *PAIR_KINDS])
def test_loss_falls(make_run, hidream_folder, kind):
    run = make_run()
    trainer = loss_falls(run, options(hidream_folder, **(KINDS | PAIR_KINDS)[kind]))
    if kind != "full":
        every_layer_of_the_transformer_is_in_the_file(run, trainer)
        return
    # the file is the trained transformer, with its gates
    found, expected = load_file(run.output), trainer.model.transformer.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    before = HiDreamImagePipeline.from_pretrained(hidream_folder, text_encoder_4=None).transformer.state_dict()
    assert all(not torch.equal(found[f"{path}.weight"], before[f"{path}.weight"]) for path in (EXPERT, GATE))
    # what the image, each block's text, T5's, their summary and the time come in by, and where the answer comes out
    roles = {
        name.removeprefix("transformer."): get_parameter_info(parameter).role
        for name, parameter in trainer.trained["transformer"].named_parameters().items()
    }
    first = ["x_embedder.proj", "t_embedder.timestep_embedder.linear_1", "p_embedder.pooled_embedder.linear_1"]
    first += [f"caption_projection.{number}.linear" for number in range(3)]
    assert {name for name, role in roles.items() if role == ParameterRole.INPUT} == {f"{name}.weight" for name in first}
    assert {name for name, role in roles.items() if role == ParameterRole.OUTPUT} == {"final_layer.linear.weight"}
    assert roles[f"{GATE}.weight"] == ParameterRole.HIDDEN


def every_layer_of_the_transformer_is_in_the_file(run, trainer) -> None:
    written = trainer.model.adapter_naming().write["COMFY_LORA"]
    wanted = {name for (component, _), name in written.items() if component == "transformer"}
    assert read_adapter(run.output).layers.keys() == wanted


def test_text_encoders_are_trained(make_run, hidream_folder):
    """CLIP-L, CLIP-G and T5, with the captions read anew in each step; checkpointing changes no number."""
    losses = []
    for checkpointing in (False, True):
        run = make_run(f"{checkpointing}")
        trained = {name: {"train": True, "gradient_checkpointing": checkpointing} for name in ENCODERS[:3]}
        transformer = {"gradient_checkpointing": checkpointing}
        trainer = run.trainer(**options(hidream_folder, epochs=1, **trained, transformer=transformer))
        trainer.run()
        losses.append(list(trainer.progress.losses))
        assert not any("ComfyUI" in text for text in run.warnings())
    every_layer_is_in_the_file(run, trainer)
    file = load_file(run.output)
    for name in ("clip_l.transformer.text_projection", "clip_g.transformer.text_model.encoder.layers.0.mlp.fc1",
                 "t5xxl.transformer.encoder.block.1.layer.0.SelfAttention.q"):  # fmt: skip
        assert file[f"text_encoders.{name}.lora_B.weight"].abs().max() > 1e-3, name
    # the repeated operations may be summed in another order
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_resumed_run_has_the_same_bytes(make_run, hidream_folder):
    settings = options(
        hidream_folder, epochs=2, samples=[SAMPLE], sample_after=3, sample_after_unit="STEP", masked_training=True,
        loss_weight_fn="SIGMA", transformer={"gradient_checkpointing": True},
    )  # fmt: skip
    same_bytes_after_a_stop(make_run, settings)


def draws_small_images(pipeline) -> None:
    """With the solver of this trainer."""
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline.default_sample_size = 4


def test_a_run_s_file_loads_in_diffusers(make_run, hidream_folder):
    settings = options(hidream_folder, samples=[{**SAMPLE, "cfg_scale": 2.0}], **DRAWN)
    diffusers_draws_the_same(
        make_run(), hidream_folder, settings, prepare=draws_small_images, max_sequence_length=LENGTH
    )


def test_training_goes_on_from_a_file(make_run, hidream_folder):
    settings = options(hidream_folder, epochs=1, output_model_format="KOHYA_LORA")
    goes_on_from_a_file(make_run, HiDreamModel, settings, EXPERT)


@pytest.mark.parametrize(("weights", "kind"), [("INT_8", "LoRA"), ("FLOAT_8", "DoRA"), ("NFLOAT_4", "OFT")])
def test_quantized_base(make_run, wide_hidream_folder, weights, kind):
    """It trains, draws and saves; and the base's layers, experts among them, really are in that format."""
    run, settings = make_run(), options(wide_hidream_folder, samples=[SAMPLE], **KINDS[kind])
    paths = ("single_stream_blocks.0.block.attn1.to_q", EXPERT, f"{GATE.removesuffix('gate')}shared_experts.w3")
    trainer = quantized_base_trains(run, settings, weights, paths, checkpoints=kind == "LoRA")
    every_layer_of_the_transformer_is_in_the_file(run, trainer)


def test_layers_that_wait_elsewhere_change_nothing(make_run, hidream_folder):
    # copies in another format: where a file's own tensors lie decides how products of these sizes are rounded
    settings = options(hidream_folder, transformer={"weight_dtype": "BFLOAT_16"}, train_dtype="FLOAT_32")
    layers_that_wait_change_nothing(make_run, settings)


def test_prior_images_change_nothing(make_run, hidream_folder, mini_concept):
    prior_images_change_nothing(make_run(), options(hidream_folder), mini_concept)


def test_a_whole_model_with_llama_from_elsewhere(make_run, own_hidream_folder):
    """The saved folder has Llama and its tokenizer in it, so that it is read without naming them."""
    llama = own_hidream_folder.with_name("llama")
    (own_hidream_folder / "text_encoder_4").rename(llama)
    for path in (own_hidream_folder / "tokenizer_4").iterdir():
        path.rename(llama / path.name)
    (own_hidream_folder / "tokenizer_4").rmdir()
    index = json.loads((own_hidream_folder / "model_index.json").read_text())
    del index["text_encoder_4"], index["tokenizer_4"]
    (own_hidream_folder / "model_index.json").write_text(json.dumps(index))
    run = make_run()
    folder = {"output_model_format": "DIFFUSERS", "output_model_destination": str(run.workspace / "whole")}
    named = {"text_encoder_4": {"train": False, "model_name": str(llama)}}
    trainer = run.trainer(**options(own_hidream_folder, epochs=1, **KINDS["full"] | folder | named))
    trainer.run()
    again = HiDreamModel.load(trainer.config.model_copy(update={
        "base_model_name": str(run.workspace / "whole"), "text_encoder_4": type(trainer.config.text_encoder_4)(),
    }), torch.device("cpu"))  # fmt: skip
    trained = trainer.model.transformer.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in again.transformer.state_dict().items())
    found, expected = (model.encode_captions(["a red cat"])["states"] for model in (again, trainer.model))
    assert torch.equal(found, expected)


# as OneTrainer's preset `HiDream Full/#hidream LoRA` has it (August 2026)
PRESET = {
    "base_model_name": "HiDream-ai/HiDream-I1-Full", "batch_size": 4, "dataloader_threads": 1, "learning_rate": 0.0003,
    "model_type": "HI_DREAM_FULL", "output_model_destination": "models/lora.safetensors", "backup_after": 10,
    "output_model_format": "DIFFUSERS_LORA", "resolution": "512", "timestep_distribution": "LOGIT_NORMAL",
    "dynamic_timestep_shifting": False, "train_dtype": "BFLOAT_16", "training_method": "LORA",
    "transformer": {"train": True, "weight_dtype": "FLOAT_8", "offload_fraction": 0.5},
    "text_encoder": {"train": False, "weight_dtype": "FLOAT_8"},
    "text_encoder_2": {"train": False, "weight_dtype": "FLOAT_8"},
    "text_encoder_3": {"train": False, "weight_dtype": "FLOAT_8", "offload_fraction": 0.5},
    "text_encoder_4": {"model_name": "meta-llama/Llama-3.1-8B-Instruct", "train": False, "weight_dtype": "FLOAT_8",
                       "offload_fraction": 0.5},
}  # fmt: skip


def test_onetrainer_s_preset(make_run):
    problems, told = problems_of_preset(make_run(), PRESET)
    assert not problems and not told
