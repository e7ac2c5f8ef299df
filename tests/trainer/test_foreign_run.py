"""Whole runs on a device that is not the CPU: encode, train, validate, save; and how often a step waits for it."""

from modules.trainer import Trainer as trainer_module
from modules.trainer.GradientStep import GradientStep
from scaled_optim import arithmetic
from tests.foreign_device import NAME, ForeignDevice

import torch

import pytest
from safetensors.torch import load_file

SCALED = {"optimizer": "ADAMW_ADV", "scaled_optm": True}
# a step of these takes long on the device
FEW = {"layer_filter_preset": "custom", "layer_filter": "attn1"}
RUNS = {
    "lora": {},
    "dora, accumulated, averaged": {
        "lora_decompose": True, "gradient_accumulation_steps": 2, "ema": "GPU", "ema_update_step_interval": 1,
        "ema_decay": 0.5, "optimizer": SCALED,
    },
    "oft": {"peft_type": "OFT_2", "oft_block_size": 4, "oft_scaled": True, "optimizer": SCALED},
    "text encoder": {"text_encoder": {"train": True, "gradient_checkpointing": False}},
    "noise": {
        "offset_noise_weight": 0.1, "perturbation_noise_weight": 0.1, "generalized_offset_noise": True,
        "loss_weight_fn": "MIN_SNR_GAMMA", "timestep_distribution": "LOGIT_NORMAL", "masked_training": True,
    },
    "full": {
        "training_method": "FINE_TUNE", "output_model_format": "SAFETENSORS", "optimizer": SCALED,
        "learning_rate": 0.02,
    },
    "bfloat16, fused backward": {
        "train_dtype": "BFLOAT_16", "optimizer": {**SCALED, "fused_back_pass": True}, "clip_grad_norm": None,
        **FEW,
    },
    "float16": {"train_dtype": "FLOAT_16", "optimizer": SCALED, **FEW},
    "stiefel": {"optimizer": {"optimizer": "STIEFEL_LORA"}, "lora_init": "ORTHONORMAL"},
}  # fmt: skip
# Whether the devices have float64; with `--long` both kinds, where nothing is said. torch's scaler of the loss asks for
# it.
DEVICES = {"bfloat16, fused backward": (False,), "float16": (True,)}
# Of a step: the loss and the norm of the gradients, read at once when everything else is queued.
WAITS = 1


@pytest.mark.parametrize("name", RUNS)
def test_a_run_stays_on_its_device_and_waits_once_a_step(mini_run, monkeypatch, name, long):
    """On a device with float64, and on one without, in turns: see `DEVICES`."""
    options = {"epochs": 1, "backup_before_save": False, **RUNS[name]}
    mini_run.train(**options)
    expected, other = load_file(mini_run.output), mini_run.root / "other"
    mini_run.train(**{**options, "learning_rate": 1e-12, "output_model_destination": str(other / "still.safetensors")})
    still = load_file(other / "still.safetensors")
    waits, queued = [], []
    step, apply = trainer_module.Trainer._step, GradientStep.apply

    def counted(self, *args):
        waits.append(-device.waits)
        found = step(self, *args)
        waits[-1] += device.waits
        return found

    def counted_until_queued(self, *args):
        found = apply(self, *args)
        queued.append(waits[-1] + device.waits)
        return found

    monkeypatch.setattr(trainer_module, "resolve_device", lambda config, world: device.device)
    monkeypatch.setattr(trainer_module.Trainer, "_step", counted)
    monkeypatch.setattr(GradientStep, "apply", counted_until_queued)
    results = []
    half = options.get("train_dtype") == "FLOAT_16"
    for float64 in DEVICES.get(name, (True, False) if long else (list(RUNS).index(name) % 2 == 0,)):
        device = ForeignDevice(float64)
        if not float64:
            monkeypatch.setattr(arithmetic, "WITHOUT_FLOAT64", {NAME})
        waits.clear()
        queued.clear()
        with device:
            report = mini_run.train(
                **options, output_model_destination=str(other / f"{float64}.safetensors"),
                workspace_dir=str(other / "run"), cache_dir=str(other / "cache"),
            )  # fmt: skip
        assert report["finished"] and len(waits) == len(queued) == report["steps"]
        assert max(waits[1:]) <= WAITS
        # an overflow leaves the optimizer's step out, so that the host has to know of it before
        assert max(queued[1:]) <= half
        results.append(load_file(other / f"{float64}.safetensors"))
    for found in results:
        # bfloat16 has 8 bits, and a CPU computes norms in it of which a GPU's autocast takes float32
        check_moved_alike(found, expected, still, 0.15 if options.get("train_dtype") == "BFLOAT_16" else 0.03)


def check_moved_alike(found, expected, still, tolerance):
    """Whether a run on the device has gone where the one on the CPU went, but for a share of the way."""
    assert found.keys() == expected.keys()
    moved, apart = (
        torch.cat([(found[key].float() - against[key].float()).flatten() for key in found]).norm()
        for against in (still, expected)
    )
    # a few steps whose sums have another order
    assert moved > 0 and apart < tolerance * moved
