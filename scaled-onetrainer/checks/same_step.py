"""Repeats first steps that behaviour.py wrote down in OneTrainer with our own trainer: same parts, same bits.

    python scaled-onetrainer/checks/same_step.py FOLDER [--table FILE]

FOLDER is the --work folder of behaviour.py. To be run with this repository's Python: our trainer makes its own
adapters, roles and optimizer from the config; the values and gradients are those of OneTrainer's first step.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from modules.trainer.checks import open_model
from modules.trainer.optimizers import create_optimizer
from modules.trainer.trained import make_trained
from modules.util.config.TrainConfig import TrainConfig
from scaled_onetrainer.members import rule_of

import torch

from own import main
from safetensors.torch import load_file
from upstream import COMMON, merged

# what parts of adapters are called there and here
PARTS = {"oft_R.weight": "weight"}
OPTIONS = {"orthogonal_gradient_mode": "orthogonal_gradient", "muon_aux_adam": "MuonWithAuxAdam"}


def own_name(name: str) -> str:
    """The name that a parameter of OneTrainer has in our trainer."""
    name = name.replace("text_encoder.text_model.", "text_encoder.", 1)
    for theirs, ours in PARTS.items():
        name = name.removesuffix(theirs) + ours if name.endswith(theirs) else name
    return name


def own_config(changes: dict[str, Any]) -> TrainConfig:
    """Our config for a run of OneTrainer's."""
    optimizer = {OPTIONS.get(key, key): value for key, value in changes["optimizer"].items()}
    optimizer["optimizer"] = rule_of(optimizer["optimizer"])
    # OneTrainer's switch alone is its own form, and it rotates whole kernels
    form = {"oft_kernels": True} | ({"oft_scale_mode": "ROW"} if changes.get("oft_scaled") else {})
    common = {key: value for key, value in COMMON.items() if key != "samples"}
    return TrainConfig.from_dict(merged(common, form, {**changes, "optimizer": optimizer}))


def repeat(folder: Path) -> str:
    """What came of a step: raises where a name, role, pair, scale or bit differs."""
    facts = json.loads((folder / "step.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "step.safetensors")
    config = own_config(facts["config"])
    model = open_model(config, torch.device("cpu"), lambda _: None, None)
    trained = make_trained(model, config, lambda _: None)
    own = {info_of(p).name: p for one in trained.values() for p in one.parameters()}
    groups: dict[str, list[Any]] = {}
    for known in facts["parameters"]:
        name = own_name(known["name"])
        parameter, info = own[name], info_of(own[name])
        found = (str(info.role), info.pair, info.forward_scale)
        expected = (known["role"], known["pair"] and own_name(known["pair"]), known["scale"])
        assert found[:2] == expected[:2] and abs(found[2] - expected[2]) < 1e-12, f"{name}: {found}, {expected}"
        groups.setdefault(info.component, []).append(parameter)
        with torch.no_grad():
            parameter.copy_(tensors[f"start/{known['name']}"].view(parameter.shape))
        gradient = tensors.get(f"gradient/{known['name']}")
        parameter.grad = None if gradient is None else gradient.view(parameter.shape).to(parameter.dtype)
    assert len(own) == len(facts["parameters"]), f"{len(own)} parameters here, {len(facts['parameters'])} there"
    rate = facts["learning_rate"]
    optimizer = create_optimizer(
        config.optimizer, [{"params": params, "lr": rate, "name": name} for name, params in groups.items()], 0
    )
    optimizer.step()
    moved = 0
    for known in facts["parameters"]:
        name = known["name"]
        if f"end/{name}" in tensors:
            end = tensors[f"end/{name}"]
            assert torch.equal(own[own_name(name)].detach().view(end.shape), end), f"{name} differs"
            moved += not torch.equal(end, tensors[f"start/{name}"])
    assert moved >= len(facts["parameters"]) / 4, f"only {moved} moved"
    return f"{len(own)} parameters with equal bits after the step, {moved} of which it moved"


def info_of(parameter: torch.nn.Parameter) -> Any:
    return parameter.parameter_info


if __name__ == "__main__":
    sys.exit(main(__doc__, "same step as our own trainer", repeat))
