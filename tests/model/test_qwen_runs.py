"""Whole runs on a small Qwen-Image: kinds of training, resume, formats of weights, and layers that wait elsewhere."""

from pathlib import Path

from modules.model.QuantizedLinear import QuantizedLinear
from modules.model.QwenModel import QwenModel
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
        "base_model_name": str(folder), "model_type": "QWEN", "output_model_format": "COMFY_LORA",
        "transformer": {"gradient_checkpointing": False}, "unet": {}, "text_encoder": {"train": False},
        "timestep_distribution": "LOGIT_NORMAL", "optimizer": SCALED, "learning_rate": 0.03, **changes,
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_loss_falls(make_run, qwen_folder, kind):
    run = make_run()
    trainer = run.trainer(**options(qwen_folder, epochs=8, **KINDS[kind]))
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
    run = make_run()
    trainer = run.trainer(**options(
        wide_qwen_folder, epochs=1, train_dtype="BFLOAT_16", samples=[SAMPLE], sample_after=1,
        sample_after_unit="EPOCH", transformer={"weight_dtype": weights, "gradient_checkpointing": False},
        text_encoder={"train": False, "weight_dtype": weights}, **KINDS[kind],
    ))  # fmt: skip
    trainer.run()
    for path in ("transformer_blocks.1.attn.to_q", "transformer_blocks.1.img_mod.1"):
        layer = trainer.model.transformer.get_submodule(path)
        assert isinstance(layer, QuantizedLinear) and layer.data_type == weights
    assert len(read_adapter(run.output).layers) == len(trainer.model.adapter_naming().write["COMFY_LORA"])
    assert len(list(run.workspace.rglob("0 - */*.jpg"))) == 2


def test_layers_that_wait_elsewhere_change_nothing(make_run, qwen_folder, monkeypatch):
    # weights stand at odd addresses of their file, copies of them do not, and products are rounded by that
    stored = QwenModel.stored_component
    monkeypatch.setattr(QwenModel, "stored_component", lambda *own: stored(*own)._apply(lambda tensor: tensor.clone()))
    digests = []
    for fraction in (0.0, 0.7):
        run = make_run(f"{fraction}")
        transformer = {"gradient_checkpointing": True, "offload_fraction": fraction}
        # both are the CPU's memory, but to layers that wait they are two
        run.train(**options(qwen_folder, epochs=1, transformer=transformer, temp_device="cpu:0"))
        digests.append([tensor for _, tensor in sorted(load_file(run.output).items())])
    assert all(map(torch.equal, *digests))


def test_prior_images_change_nothing(make_run, qwen_folder, mini_concept):
    run = make_run()
    listed = [{"path": str(mini_concept), "type": "PRIOR_PREDICTION"}]
    rule = {"optimizer": {"optimizer": "ADAMW", "weight_decay": 0.0}}
    run.train(**options(qwen_folder, epochs=1, concepts=listed) | rule)
    assert [(step["loss"], step["gradient_norm"]) for step in run.of_kind("step")] == [(0, 0)] * 4


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
    run, told = make_run(), []
    listed = train_config_from_dict(run.options()).model_dump(mode="json")["concepts"]
    places = {
        "concepts": listed, "workspace_dir": str(run.workspace), "output_model_destination": str(run.output),
        "train_device": "cpu", "temp_device": "cpu",
    }  # fmt: skip
    config = train_config_from_dict({**ONETRAINER, **PRESETS[name], **places}, warn=told.append)
    found = [problem.path for problem in run_problems(config, told.append)]
    assert found == (["transformer.offload_fraction"] if name == "Finetune 16GB" else [])
    # old spellings, which a file without a version is not taken to mean; and steps may be too small for bfloat16
    assert [line.split(":")[0] for line in told] == [
        *(["config"] if "layer_offload_fraction" in PRESETS[name] else []),
        *(["transformer.weight_dtype"] if "Finetune" in name else []),
    ]
