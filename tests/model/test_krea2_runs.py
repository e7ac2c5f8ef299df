"""Whole runs on a small Krea 2: kinds of training, resume, formats of weights, and layers that wait elsewhere."""

import json
from pathlib import Path

from modules.model.Krea2Model import Krea2Model
from modules.model.QuantizedLinear import QuantizedLinear
from modules.modelSaver.AdapterFile import read_adapter
from modules.trainer.checks import run_problems
from modules.util.config.load import train_config_from_dict
from tests.model.family_checks import DRAWN, diffusers_draws_the_same, goes_on_from_a_file, same_bytes_after_a_stop
from tests.model.krea2_base import LAYERS, native_tensors
from tests.model.test_qwen_runs import FINETUNE, KINDS, ONETRAINER, SAMPLE, SCALED

import torch

import pytest
from diffusers import DiffusionPipeline
from safetensors.torch import load_file


def options(folder: Path | str, **changes) -> dict:
    return {
        "base_model_name": str(folder), "model_type": "KREA_2", "output_model_format": "COMFY_LORA",
        "transformer": {"gradient_checkpointing": False}, "unet": {}, "text_encoder": {"train": False},
        "timestep_distribution": "LOGIT_NORMAL", "optimizer": SCALED, "learning_rate": 0.03, **changes,
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_loss_falls(make_run, krea2_folder, kind):
    run = make_run()
    trainer = run.trainer(**options(krea2_folder, epochs=8, **KINDS[kind]))
    trainer.run()
    losses = torch.tensor(list(trainer.progress.losses))
    # means of 16 images each: their noise differs by a few per cent, the loss by more
    assert len(losses) == 32 and losses[-8:].mean() < 0.8 * losses[:8].mean()
    if kind != "full":
        file = read_adapter(run.output)
        assert len(file.layers) == len(trainer.model.adapter_naming().write["COMFY_LORA"])
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
    run = make_run()
    trainer = run.trainer(**options(
        wide_krea2_folder, epochs=1, train_dtype="BFLOAT_16", samples=[SAMPLE], sample_after=1,
        sample_after_unit="EPOCH", transformer={"weight_dtype": weights, "gradient_checkpointing": False},
        text_encoder={"train": False, "weight_dtype": weights}, **KINDS[kind],
    ))  # fmt: skip
    trainer.run()
    for path in ("transformer_blocks.1.attn.to_q", "text_fusion.layerwise_blocks.0.ff.up"):
        layer = trainer.model.transformer.get_submodule(path)
        assert isinstance(layer, QuantizedLinear) and layer.data_type == weights
    assert len(read_adapter(run.output).layers) == len(trainer.model.adapter_naming().write["COMFY_LORA"])
    assert len(list(run.workspace.rglob("0 - */*.jpg"))) == 2


def test_layers_that_wait_elsewhere_change_nothing(make_run, krea2_folder):
    digests = []
    for fraction in (0.0, 0.7):
        run = make_run(f"{fraction}")
        transformer = {"gradient_checkpointing": True, "offload_fraction": fraction}
        # both are the CPU's memory, but to layers that wait they are two
        run.train(**options(krea2_folder, epochs=1, transformer=transformer, temp_device="cpu:0"))
        digests.append([tensor for _, tensor in sorted(load_file(run.output).items())])
    assert all(map(torch.equal, *digests))


def test_prior_images_change_nothing(make_run, krea2_folder, mini_concept):
    run = make_run()
    listed = [{"path": str(mini_concept), "type": "PRIOR_PREDICTION"}]
    rule = {"optimizer": {"optimizer": "ADAMW", "weight_decay": 0.0}}
    run.train(**options(krea2_folder, epochs=1, concepts=listed) | rule)
    assert [(step["loss"], step["gradient_norm"]) for step in run.of_kind("step")] == [(0, 0)] * 4


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
    run, told = make_run(), []
    listed = train_config_from_dict(run.options()).model_dump(mode="json")["concepts"]
    places = {
        "concepts": listed, "workspace_dir": str(run.workspace), "output_model_destination": str(run.output),
        "train_device": "cpu", "temp_device": "cpu",
    }  # fmt: skip
    config = train_config_from_dict({**ONETRAINER, **OF_KREA, **PRESETS[name], **places}, warn=told.append)
    full = "Finetune" in name
    problems = {problem.path: problem.text for problem in run_problems(config, told.append)}
    # the first is a matter of the CPU
    assert list(problems) == ["attention_mechanism", f"transformer.{'offload_fraction' if full else 'weight_dtype'}"]
    assert ("only frozen layers can wait" if full else "INT_W8A8, which is not supported") in str(problems)
    # steps may be too small for bfloat16
    assert [line.split(":")[0] for line in told] == (["transformer.weight_dtype"] if full else [])
    # with another of these formats, and no waiting layers
    changed = {"transformer": {"weight_dtype": "BFLOAT_16" if full else "INT_8"}, "attention_mechanism": "SDP"}
    config = train_config_from_dict({**ONETRAINER, **OF_KREA, **PRESETS[name], **places, **changed}, warn=told.append)
    assert not list(run_problems(config, told.append))
