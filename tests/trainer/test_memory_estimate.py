"""The estimate against formulas that are known by heart, and against what operations on real numbers make."""

import json

from modules.model.LayerOffload import module_bytes
from modules.trainer.memory_estimate import estimate_memory, load_without_weights, memory_table
from modules.util.config.TrainConfig import TrainConfig
from modules.util.MemoryProbe import MemoryProbe
from modules.util.UserError import UserError

import torch

import pytest


def estimate(run, separate: bool | None = None, **options):
    config = TrainConfig.from_dict(run.options(**options))
    return estimate_memory(load_without_weights(config, lambda text: None), config, lambda text: None, separate)


def trained_bytes(run, **options) -> tuple[int, int, int]:
    """What a real run takes of every tensor that operations make in its last step: peak, state, trained weights."""
    trainer = run.trainer(**options)
    trainer._prepare()
    trainer._step()
    with MemoryProbe() as probe:
        trainer._step()
    state = sum(t.nbytes for s in trainer.optimizer.state.values() for t in s.values() if torch.is_tensor(t))
    trainer.log.close()
    return probe.peak, state, sum(p.nbytes for p in trainer.parameters)


@pytest.mark.parametrize("method", ["LORA", "FINE_TUNE"])
def test_agrees_with_a_real_step(mini_run, method):
    options = {"training_method": method, "optimizer": {"optimizer": "ADAMW"}}
    if method == "FINE_TUNE":
        options["output_model_format"] = "SAFETENSORS"
    found = estimate(mini_run, **options).phases["training"]
    # the estimate takes square images of the resolution; so are most of the miniature's batches
    peak, state, trained = trained_bytes(mini_run, **options, resolution="32")
    unet = module_bytes(load_without_weights(TrainConfig.from_dict(mini_run.options()), print).layers_of("unet"))
    assert found["weights of unet"] == unet and found["gradients"] == trained
    assert found["adapters"] == (trained if method == "LORA" else 0)
    assert found["optimizer state"] == state
    # some batches of the run are taller or wider than the square of the estimate, by a latent of 8 or so
    assert 0.7 < (found["gradients"] + found["activations and temporaries"]) / peak < 1.3


def test_fused_backward_holds_the_largest_gradient_alone(mini_run):
    adamw = {"optimizer": "ADAMW_ADV"}
    plain = estimate(mini_run, optimizer=adamw).phases["training"]
    fused = estimate(mini_run, optimizer={**adamw, "fused_back_pass": True}).phases["training"]
    assert fused["gradients"] < 0.1 * plain["gradients"]
    assert fused["optimizer state"] == pytest.approx(plain["optimizer state"], rel=0.02)


def test_parts_that_wait_elsewhere_are_not_on_the_device(mini_run):
    part = {"gradient_checkpointing": True, "offload_fraction": 1.0}
    together, apart = (estimate(mini_run, separate, unet=part) for separate in (False, True))
    assert "weights of vae" in together.phases["training"] and not together.waiting
    assert "weights of vae" not in apart.phases["training"] and apart.waiting["vae"] > 0
    waits = apart.waiting["layers of unet"]
    # all but one of the units that move
    gone = together.phases["training"]["weights of unet"] - apart.phases["training"]["weights of unet"]
    assert 0.8 * waits < gone < waits


def test_unreachable_model_of_a_known_type(mini_run):
    """Without the network the standard model is estimated, and the user is told; other types have to be there."""
    options = {"base_model_name": "nobody/nothing", "offline_mode": True}
    notes: list[str] = []
    config = TrainConfig.from_dict(mini_run.options(**options))
    model = load_without_weights(config, notes.append)
    assert "The estimate is that of the standard model of STABLE_DIFFUSION_15" in notes[0]
    assert module_bytes(model.layers_of("unet")) == 4 * 859_520_964  # the published count of parameters
    flux = config.model_copy(update={"model_type": "FLUX_2"})
    with pytest.raises(UserError, match="there is no description of it"):
        load_without_weights(flux, notes.append)
    with pytest.raises(UserError, match="base_model_name"):
        load_without_weights(config.model_copy(update={"base_model_name": str(mini_run.root)}), notes.append)


def test_command_line(mini_run, capsys, monkeypatch):
    from scripts.estimate_memory import main

    path, output = mini_run.write(), mini_run.root / "estimate.json"
    assert main([str(path), "--override", "lora_rank=2", "--output", str(output)]) == 0
    found = json.loads(output.read_text(encoding="utf-8"))
    text = capsys.readouterr().out
    assert "weights of unet" in text and "sum" in text and found["phases"]["training"]["gradients"] > 0
    assert main([str(path), "--override", "unet.weight_dtype=GGUF"]) == 1
    assert "unet.weight_dtype: found GGUF" in capsys.readouterr().err


def test_table_adds_up(mini_run):
    found = estimate(mini_run, ema="GPU")
    assert found.phases["training"]["moving average"] == found.phases["training"]["adapters"]
    rows = [line.split() for line in memory_table(found).splitlines()]
    assert [row[-1] for row in rows if row[1] == "sum"] == [f"{found.total(p) / 2**30:.2f}" for p in found.phases]
