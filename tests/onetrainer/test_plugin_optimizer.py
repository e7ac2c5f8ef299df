"""The optimizer object as OneTrainer uses it: made, backed up, resumed, fused, and asked for its curves."""

import contextlib
import io
from pathlib import Path
from typing import Any

from tests.onetrainer.inside import inside

import torch

import pytest


def trainer_of(folder: Path, board: Any = None, optimizer: str = "SCALED_ADAMW_ADV", **values: Any) -> Any:
    """A trainer that is ready. Options of the optimizer have `optimizer_` before them."""
    from modules.trainer.GenericTrainer import GenericTrainer
    from modules.util.config.TrainConfig import TrainConfig

    options = {key[10:]: values.pop(key) for key in list(values) if key.startswith("optimizer_")}
    places = {"workspace_dir": str(folder / "workspace"), "output_model_destination": str(folder / "out.safetensors")}
    optimizer = {"optimizer": optimizer, **options}
    config = TrainConfig.default_values().from_dict({"optimizer": optimizer, **places, **values})
    trainer = GenericTrainer(config, board)
    trainer.start()
    return trainer


def weights_of(trainer: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def run(folder: Path, **values: Any) -> Any:
    trainer = trainer_of(folder, **values)
    trainer.train()
    trainer.end()
    return trainer


START = {"STIEFEL_LORA": {"lora_init": "ORTHONORMAL"}}


@inside
def test_every_rule_trains_and_resumes_to_the_bit(tmp_path):
    from scaled_onetrainer.members import MEMBERS

    for name in MEMBERS:
        folder, settings = tmp_path / name, START.get(name, {})
        whole = run(folder / "whole", optimizer=name, steps=6, **settings)
        run(folder / "parts", optimizer=name, steps=3, **settings)
        resumed = run(folder / "parts", optimizer=name, steps=3, continue_last_backup=True, **settings)
        assert same(weights_of(whole), weights_of(resumed)), name
        assert resumed.model.train_progress.global_step == 6
        begun = trainer_of(folder / "begun", optimizer=name, **settings)
        assert not same(weights_of(whole), weights_of(begun)), name


@inside
def test_the_factory_hands_on_every_option(tmp_path):
    from scaled_onetrainer.members import MEMBERS
    from scaled_onetrainer.PluginOptimizer import PluginOptimizer

    for name, rule in MEMBERS.items():
        optimizer = trainer_of(tmp_path, optimizer=name, **START.get(name, {})).model.optimizer
        assert isinstance(optimizer, PluginOptimizer) and optimizer.rule.name == rule
        for key, value in optimizer.rule.defaults.items():
            assert all(group[key] == value for group in optimizer.param_groups), (name, key)
    options = {"optimizer_beta1": 0.5, "optimizer_weight_decay": 0.25, "optimizer_scaled_optm": True}
    groups = trainer_of(tmp_path, **options).model.optimizer.param_groups
    assert [(g["beta1"], g["weight_decay"], g["scaled_optm"], g["lr"]) for g in groups] == [(0.5, 0.25, True, 1e-2)]


@inside
def test_theirs_are_made_by_them(tmp_path):
    assert type(trainer_of(tmp_path, optimizer="SGD").model.optimizer) is torch.optim.SGD
    with pytest.raises(ValueError, match="^optimizer.scaled_optm: OneTrainer's ADAMW_ADV has no such option"):
        trainer_of(tmp_path, optimizer="ADAMW_ADV", optimizer_scaled_optm=True)


@inside
def test_offloaded_layers_need_the_fused_pass(tmp_path):
    settings = {"training_method": "FINE_TUNE", "unet": {"offload_fraction": 0.5}}
    with pytest.raises(ValueError, match="^optimizer.fused_back_pass: found false, expected true"):
        trainer_of(tmp_path, **settings)
    trainer_of(tmp_path, optimizer_fused_back_pass=True, **settings)
    # weights of adapters stay where they are
    trainer_of(tmp_path, unet={"offload_fraction": 0.5})


@inside
def test_muon_has_rates_of_its_own_for_encoders(tmp_path):
    from scaled_onetrainer.hooks.factory import set_encoder_rates

    config = trainer_of(tmp_path, optimizer="SCALED_MUON_ADV").config.optimizer
    config.muon_te1_adam_lr, config.muon_te2_adam_lr = 0.25, None
    names = ["text_encoder", "text_encoder_lora", "text_encoder_2_lora", "unet"]
    groups = [{"name": name} for name in names]
    set_encoder_rates(groups, config)
    assert [group.get("muon_adam_lr") for group in groups] == [0.25, 0.25, None, None]


@inside
def test_no_state_before_the_first_step(tmp_path):
    trainer = trainer_of(tmp_path)
    state = trainer.model.optimizer.state_dict()
    assert state["state"] == {} and len(state["param_groups"]) == 1
    assert state["param_groups"][0]["params"] == list(range(12))
    trainer.train()
    assert len(trainer.model.optimizer.state_dict()["state"]) == 12


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@inside
def test_what_was_loaded_is_given_back_before_the_first_step(tmp_path):
    run(tmp_path)
    saved = torch.load(tmp_path / "workspace" / "backup" / "optimizer" / "optimizer.pt", weights_only=True)
    kept = trainer_of(tmp_path, continue_last_backup=True).model.optimizer.state_dict()
    assert len(saved["state"]) == 12 and set(kept["state"]) == set(saved["state"])
    assert all(equal(kept["state"][place], entry) for place, entry in saved["state"].items())


@inside
def test_a_backup_of_an_unstepped_resume_is_the_old_one(tmp_path):
    """As a run that is stopped while it caches."""
    run(tmp_path, steps=3)
    trainer_of(tmp_path, continue_last_backup=True).end()
    resumed = run(tmp_path, steps=3, continue_last_backup=True)
    assert same(weights_of(resumed), weights_of(run(tmp_path / "whole", steps=6)))


def lines_of(call: Any) -> tuple[Any, str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        result = call()
    return result, said.getvalue()


@inside
def test_another_optimizers_backup(tmp_path):
    run(tmp_path, optimizer="ADAMW")
    trainer, said = lines_of(lambda: trainer_of(tmp_path, continue_last_backup=True))
    assert "The backup's optimizer state is that of ADAMW: SCALED_ADAMW_ADV begins with a new one." in said
    assert trainer.model.optimizer.state_dict()["state"] == {}
    trainer.train()
    run(tmp_path, optimizer="SCALED_LION_ADV")
    trainer, said = lines_of(lambda: trainer_of(tmp_path, continue_last_backup=True))
    assert "The backup's optimizer state is that of SCALED_LION_ADV: SCALED_ADAMW_ADV begins with a new one." in said
    trainer.train()
    # and theirs begin anew after ours
    run(tmp_path, optimizer="SCALED_LION_ADV")
    run(tmp_path, optimizer="ADAMW", continue_last_backup=True)


@inside
def test_options_and_rates_are_those_of_now(tmp_path):
    run(tmp_path)
    changed = {"optimizer_weight_decay": 0.25, "optimizer_beta1": 0.5, "learning_rate": 0.5}
    trainer, said = lines_of(lambda: trainer_of(tmp_path, continue_last_backup=True, **changed))
    line = next(line for line in said.splitlines() if "changed since the backup" in line)
    assert line.startswith("Options of SCALED_ADAMW_ADV changed since the backup: ")
    assert "weight_decay 0.0 → 0.25" in line and "beta1 0.9 → 0.5" in line and "lr" not in line
    trainer.train()
    group = trainer.model.optimizer.param_groups[0]
    assert (group["weight_decay"], group["beta1"], group["lr"]) == (0.25, 0.5, 0.5)
    # unchanged: nothing is said
    _, said = lines_of(lambda: trainer_of(tmp_path, continue_last_backup=True))
    assert "changed" not in said


@inside
def test_a_group_that_is_added_later_begins_fresh(tmp_path):
    from modules.util import create
    from modules.util.NamedParameterGroup import NamedParameterGroup

    first = run(tmp_path)
    saved = torch.load(tmp_path / "workspace" / "backup" / "optimizer" / "optimizer.pt", weights_only=True)
    added = torch.nn.Parameter(torch.randn(2, 8))
    # before the others, so that no place is what it was
    first.model.parameters.groups.insert(0, NamedParameterGroup("embeddings/new", [added], 0.1))
    optimizer = create.create_optimizer(first.model.parameters, saved, first.config)
    for parameter in (added, *weights(first)):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    found = optimizer.state_dict()
    steps = [int(found["state"][place]["step"]) for place in range(13)]
    assert steps == [1] + [5] * 12


def weights(trainer: Any) -> list[torch.nn.Parameter]:
    return [parameter for parameter in trainer.model.adapter.parameters()]


@inside
def test_fused_equals_unfused_to_the_bit(tmp_path):
    for name in ("SCALED_ADAMW_ADV", "SCALED_PRODIGY_ADV", "SCALED_MUON_ADV", "LORA_RITE"):
        results = []
        for fused, scaler in ((False, False), (True, False), (True, True)):
            settings = {"optimizer": name, "optimizer_fused_back_pass": fused, "gradient_scaler": scaler}
            trainer = trainer_of(tmp_path, **settings)
            before = weights_of(trainer)
            trainer.train()
            assert not same(before, weights_of(trainer))
            results.append(weights_of(trainer))
        # a scale of 1024 is exact
        assert same(results[0], results[1]) and same(results[0], results[2]), name


@inside
def test_prodigy_finds_its_rate_without_a_call_of_step(tmp_path):
    """With a gradient scaler nobody calls `step` after a fused pass: `zero_grad` closes it, so that d moves."""
    rates = []
    for fused in (False, True):
        settings = {"optimizer": "SCALED_PRODIGY_ADV", "learning_rate": 1.0, "steps": 12}
        trainer = trainer_of(tmp_path, optimizer_fused_back_pass=fused, gradient_scaler=fused, **settings)
        trainer.train()
        rates.append(trainer.model.optimizer.read_statistics()["d"])
    start = trainer.config.optimizer.d0
    assert rates[0] == rates[1] > 2 * start


@inside
def test_a_fused_run_resumes_to_the_bit(tmp_path):
    settings = {"optimizer_fused_back_pass": True, "gradient_scaler": True}
    whole = run(tmp_path / "whole", steps=6, **settings)
    run(tmp_path, steps=3, **settings)
    assert same(weights_of(whole), weights_of(run(tmp_path, steps=3, continue_last_backup=True, **settings)))


class Curves:
    def __init__(self) -> None:
        self.found: dict[str, list[tuple[int, float]]] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.found.setdefault(name, []).append((step, value))


@inside
def test_curves(tmp_path):
    board = Curves()
    trainer_of(tmp_path, board, tensorboard=True).train()
    assert [step for step, _ in board.found["lr/unet"]] == [1, 2, 3, 4]
    for role in ("LORA_DOWN", "LORA_UP"):
        values = board.found[f"optimizer/update_rms/{role}"]
        assert [step for step, _ in values] == [1, 2, 3, 4] and all(value > 0 for _, value in values[1:])
    board = Curves()
    trainer_of(tmp_path, board, optimizer="SCALED_PRODIGY_ADV", tensorboard=True).train()
    assert len(board.found["optimizer/d"]) == 4
    # theirs get none of ours, and without TensorBoard nothing is measured
    board = Curves()
    trainer_of(tmp_path, board, optimizer="SGD", tensorboard=True).train()
    assert list(board.found) == ["lr/unet"]
    optimizer = trainer_of(tmp_path).model.optimizer
    assert not optimizer.watch
