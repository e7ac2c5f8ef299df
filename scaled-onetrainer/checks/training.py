"""Trains every rule and method in a real checkout of OneTrainer on the CPU, resumes, and checks what came of it.

    python scaled-onetrainer/checks/training.py --onetrainer DIR --work FOLDER [--only TEXT] [--table FILE]

To be run with the checkout's own Python, with the plugin installed there.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import report
from upstream import Run, config_of, steps_of, train, trained_parameters

LORA = {"training_method": "LORA", "peft_type": "LORA"}
DORA = {**LORA, "lora_decompose": True}
ORTHONORMAL = {"lora_init": "ORTHONORMAL"}
OFT = {"training_method": "LORA", "peft_type": "OFT_2", "oft_block_size": 16, "oft_scaled": True}
FULL = {"training_method": "FINE_TUNE", "output_model_format": "DIFFUSERS", "learning_rate": 1e-5}
FISHER = {"scaled_optm": True, "fisher_wd": True, "weight_decay": 0.01}
ALL_ON = {"scaled_optm": True, "centered_wd": 0.01, "centered_wd_mode": "int4", "cautious_wd": True}
FEATURES = {
    "kourkoutas_beta": True, "orthogonal_gradient_mode": "per_rank", "freeze_on_flip": True, "weight_decay": 0.01,
    "state_precision": "factored", "nesterov": True, "normuon_variant": True,
}  # fmt: skip
METHODS = {
    "DoRA": DORA,
    "OFT ROW": OFT,
    "OFT ELEMENTS": {**OFT, "oft_scale_mode": "ELEMENTS"},
    "LoHa": {"training_method": "LORA", "peft_type": "LOHA"},
    "LoKr": {"training_method": "LORA", "peft_type": "LOKR", "lokr_dim": 4},
    "full fine-tuning": FULL,
}


@dataclass(frozen=True)
class Case:
    """A run: what differs from the common config."""

    method: str
    optimizer: str
    options: dict[str, Any]
    changes: dict[str, Any]

    @property
    def name(self) -> str:
        options = ", ".join(f"{key} {value}" for key, value in self.options.items())
        return f"{self.method}, {self.optimizer}{', ' if options else ''}{options}"


def cases() -> list[Case]:
    """Every rule on LoRA with its options, and every method with the decays."""
    from scaled_onetrainer.fields import defaults_of
    from scaled_onetrainer.members import MEMBERS

    found = []
    for name in MEMBERS:
        start = ORTHONORMAL if name == "STIEFEL_LORA" else {}
        known = defaults_of(name)
        rich = {key: value for key, value in {**ALL_ON, "state_precision": "int8_sr"}.items() if key in known}
        features = {key: value for key, value in FEATURES.items() if key in known}
        found += [Case("LoRA", name, options, {**LORA, **start}) for options in ({}, rich, features)]
    for method, changes in METHODS.items():
        found.append(Case(method, "SCALED_ADAMW_ADV", ALL_ON, changes))
        found.append(
            Case(method, "SCALED_ADAMW_ADV", {"scaled_optm": True, "fisher_wd": True, "weight_decay": 0.01}, changes)
        )
    found.append(Case("DoRA", "STIEFEL_LORA", {}, {**DORA, **ORTHONORMAL}))
    found.append(Case("DoRA", "LORA_RITE", {}, DORA))
    return found


def checks() -> list[tuple[str, Callable[[Path], str]]]:
    """A check of each case."""
    return [(case.name, lambda folder, case=case: check_case(case, folder)) for case in cases()]


def check_case(case: Case, folder: Path) -> str:
    """Trains four steps, resumes for four more with every state under its name, and looks at the file."""
    settings = {**case.changes, "optimizer": {"optimizer": case.optimizer, **case.options}}
    first = train(config_of(folder, settings))
    each = len(first.losses)
    count = check_trained(first, each)
    kept: list[dict[str, Any]] = []

    def look(trainer: Any) -> None:
        kept.append(trainer.model.optimizer.state_dict())

    again = {**settings, "epochs": 2, "continue_last_backup": True, "clear_cache_before_training": False}
    second = train(config_of(folder, again), fresh=False, before_training=look)
    assert check_trained(second, 2 * each) == count
    assert len(kept[0]["state"]) == count, "before the first step the optimizer has to give back what it was given"
    assert not any("begin" in line for line in second.said), second.said
    result = f"{len(first.losses)} + {len(second.losses)} steps, {count} states resumed, {size_of(second.file)}"
    if case.optimizer == "STIEFEL_LORA":
        error = orthonormality(second)
        assert error <= 1e-5, f"BᵀB − I is {error:.1e}"
        result += f", BᵀB − I {error:.1e}"
    return result


def check_trained(run: Run, steps: int) -> int:
    """The number of parameters with state, all of which have seen `steps` steps."""
    counts = steps_of(run)
    # a model may leave layers at its end unused, which then get no gradient
    seen = set(counts.values()) - {0}
    assert seen == {steps}, f"steps: {sorted(seen)}, expected {steps}"
    assert list(counts.values()).count(0) < len(counts) / 4
    assert len(counts) == len(run.trainer.parameters) == len(trained_parameters(run))
    assert run.losses and all(0 < loss < 10 for loss in run.losses), run.losses
    for name, value in trained_parameters(run).items():
        assert value.isfinite().all(), name
    assert size_of(run.file)
    return len(counts)


def size_of(path: Path) -> str:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return f"{sum(one.stat().st_size for one in files) / 1e6:.2f} MB"


def orthonormality(run: Run) -> float:
    """The largest entry of BᵀB − I over all up factors."""
    errors = []
    for name, value in trained_parameters(run).items():
        if name.endswith("lora_up.weight"):
            columns = value.flatten(1).double()
            errors.append(float((columns.T @ columns - torch.eye(columns.shape[1])).abs().max()))
    return max(errors)


if __name__ == "__main__":
    sys.exit(report.main(__doc__, checks))
