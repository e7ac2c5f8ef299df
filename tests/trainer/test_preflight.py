"""Sparse presets as OneTrainer's users have them: what we do not use is told, and no reason to stop."""

import json

from modules.trainer import preflight
from modules.trainer.checks import run_problems
from modules.util.config.load import load_train_config
from modules.util.config.TrainConfig import TrainConfig
from modules.util.torch_build import Gpu

import torch

import pytest

GPU = Gpu("NVIDIA GeForce RTX 3060", "581.29", 8.6)
# keys and values as they stand in such presets; `prior` and `not_a_key` are of no use to these families
PRESETS = {
    "SDXL LoRA": {
        "model_type": "STABLE_DIFFUSION_XL_10_BASE", "base_model_name": "stabilityai/stable-diffusion-xl-base-1.0",
        "training_method": "LORA", "resolution": "1024", "unet": {"weight_dtype": "FLOAT_8"},
        "train_dtype": "BFLOAT_16", "text_encoder_2": {"train": False}, "prior": {"weight_dtype": "NFLOAT_4"},
    },
    "SDXL full": {
        "model_type": "STABLE_DIFFUSION_XL_10_BASE", "training_method": "FINE_TUNE", "batch_size": 4,
        "optimizer": {"optimizer": "ADAFACTOR", "fused_back_pass": False, "scale_parameter": False},
        "output_model_format": "SAFETENSORS", "compile": True, "vb_loss_strength": 0.5,
    },
    "Flux.2 LoRA": {
        "model_type": "FLUX_2", "base_model_name": "black-forest-labs/FLUX.2-dev", "training_method": "LORA",
        "transformer": {"weight_dtype": "NFLOAT_4", "offload_fraction": 0.7}, "compile": True,
        "text_encoder": {"train": False, "weight_dtype": "NFLOAT_4"}, "timestep_distribution": "LOGIT_NORMAL",
        "dynamic_timestep_shifting": True, "quantization": {"layer_filter_preset": "blocks"}, "layer_filter": "attn",
    },
    "Flux.2 full": {
        "model_type": "FLUX_2", "training_method": "FINE_TUNE", "transformer": {"weight_dtype": "BFLOAT_16"},
        "output_model_format": "DIFFUSERS", "optimizer": {"optimizer": "ADAMW_ADV", "stochastic_rounding": True},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_sparse_presets_are_accepted_and_unused_keys_are_told(tmp_path, name):
    path, told = tmp_path / "preset.json", []
    path.write_text(json.dumps({**PRESETS[name], "not_a_key": 1, "concepts": [{"path": str(tmp_path)}], "samples": []}))
    output = tmp_path / ("model" if PRESETS[name].get("output_model_format") == "DIFFUSERS" else "x.safetensors")
    places = [f"workspace_dir={tmp_path}/run", f"cache_dir={tmp_path}/cache", f"output_model_destination={output}"]
    config = load_train_config(path, places, warn=told.append)
    assert any("not_a_key" in text for text in told)
    told.clear()
    assert run_problems(config, told.append) == []
    notes = [text for text in told if text.startswith("without effect here: ") and "vb_loss_strength (" in text]
    assert len(notes) == ("vb_loss_strength" in PRESETS[name])


@pytest.mark.parametrize("device, gpus, cuda, words", [
    ("auto", [GPU], None, ["GeForce RTX 3060 (driver 581.29)", "has no CUDA", "./run-cmd.sh install_torch"]),
    ("auto", [GPU], "13.0", ["GeForce RTX 3060", "update its driver"]),
    ("auto", [], None, []),
    ("cpu", [GPU], None, []),
])  # fmt: skip
def test_a_gpu_that_stays_idle_is_told_of(monkeypatch, device, gpus, cuda, words):
    monkeypatch.setattr(preflight, "nvidia_gpus", lambda: tuple(gpus))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    told = []
    run_problems(TrainConfig.from_dict({"train_device": device}), told.append)
    idle = [line for line in told if "USES THE CPU" in line]
    assert len(idle) == bool(words) and all(word in line for line in idle for word in words)
    # who hides the GPUs knows what he does
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not preflight.idle_gpu_note(TrainConfig.from_dict({"train_device": device}))
