"""Whole runs on a small Ernie-Image: kinds of training, resume, formats of weights, and layers that wait elsewhere."""

from pathlib import Path

from modules.model.ErnieModel import ErnieModel
from modules.model.QuantizedLinear import QuantizedLinear
from modules.modelSaver.AdapterFile import read_adapter
from modules.trainer.checks import run_problems
from modules.util.config.load import train_config_from_dict
from tests.model.family_checks import DRAWN, diffusers_draws_the_same, goes_on_from_a_file, same_bytes_after_a_stop

import torch

import pytest
from safetensors.torch import load_file

SCALED = {"optimizer": "ADAMW_ADV", "scaled_optm": True}
KINDS = {
    "LoRA": {},
    "DoRA": {"lora_decompose": True},
    "OFT": {"peft_type": "OFT_2", "oft_block_size": 8, "oft_scaled": True},
    "Stiefel": {
        "optimizer": {"optimizer": "STIEFEL_LORA"},
        "lora_init": "ORTHONORMAL",
        "lora_rank": 4,
        "lora_alpha": 4.0,
    },
    "RITE": {"optimizer": {"optimizer": "LORA_RITE", "scaled_optm": True}},
    "full": {"training_method": "FINE_TUNE", "output_model_format": "ORIGINAL_TRANSFORMER", "learning_rate": 0.01},
}
SAMPLE = {"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 2, "cfg_scale": 3.0, "seed": 3}


def options(folder: Path | str, **changes) -> dict:
    return {
        "base_model_name": str(folder), "model_type": "ERNIE", "output_model_format": "COMFY_LORA",
        "transformer": {"gradient_checkpointing": False}, "unet": {}, "text_encoder": {"train": False},
        "timestep_distribution": "LOGIT_NORMAL", "optimizer": SCALED, "learning_rate": 0.03, **changes,
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_loss_falls(make_run, ernie_folder, kind):
    run = make_run()
    trainer = run.trainer(**options(ernie_folder, epochs=8, **KINDS[kind]))
    trainer.run()
    losses = torch.tensor(list(trainer.progress.losses))
    # means of 16 images each: their noise differs by a few per cent, the loss by more
    assert len(losses) == 32 and losses[-8:].mean() < 0.8 * losses[:8].mean()
    if kind != "full":
        file = read_adapter(run.output)
        assert len(file.layers) == len(trainer.model.adapter_naming().write["COMFY_LORA"])
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
    run = make_run()
    trainer = run.trainer(**options(
        wide_ernie_folder, epochs=1, train_dtype="BFLOAT_16", samples=[SAMPLE], sample_after=1,
        sample_after_unit="EPOCH", transformer={"weight_dtype": weights, "gradient_checkpointing": False},
        text_encoder={"train": False, "weight_dtype": weights}, **KINDS[kind],
    ))  # fmt: skip
    trainer.run()
    for path in ("layers.1.self_attention.to_q", "layers.1.mlp.linear_fc2"):
        layer = trainer.model.transformer.get_submodule(path)
        assert isinstance(layer, QuantizedLinear) and layer.data_type == weights
    assert len(read_adapter(run.output).layers) == len(trainer.model.adapter_naming().write["COMFY_LORA"])
    assert len(list(run.workspace.rglob("0 - */*.jpg"))) == 2


def test_layers_that_wait_elsewhere_change_nothing(make_run, ernie_folder):
    digests = []
    for fraction in (0.0, 0.7):
        run = make_run(f"{fraction}")
        transformer = {"gradient_checkpointing": True, "offload_fraction": fraction}
        # both are the CPU's memory, but to layers that wait they are two
        run.train(**options(ernie_folder, epochs=1, transformer=transformer, temp_device="cpu:0"))
        digests.append([tensor for _, tensor in sorted(load_file(run.output).items())])
    assert all(map(torch.equal, *digests))


def test_prior_images_change_nothing(make_run, ernie_folder, mini_concept):
    run = make_run()
    listed = [{"path": str(mini_concept), "type": "PRIOR_PREDICTION"}]
    rule = {"optimizer": {"optimizer": "ADAMW", "weight_decay": 0.0}}
    run.train(**options(ernie_folder, epochs=1, concepts=listed) | rule)
    assert [(step["loss"], step["gradient_norm"]) for step in run.of_kind("step")] == [(0, 0)] * 4


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
    run, told = make_run(), []
    listed = train_config_from_dict(run.options()).model_dump(mode="json")["concepts"]
    places = {
        "concepts": listed, "workspace_dir": str(run.workspace), "output_model_destination": str(run.output),
        "train_device": "cpu", "temp_device": "cpu",
    }  # fmt: skip
    config = train_config_from_dict({**ONETRAINER, **PRESETS[name], **places}, warn=told.append)
    found = [problem.path for problem in run_problems(config, told.append)]
    # a number format that rounds inputs of layers, too
    assert (found, told) == (["transformer.weight_dtype"], [])
