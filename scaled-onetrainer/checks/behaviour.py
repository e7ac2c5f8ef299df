"""Checks in a real checkout of OneTrainer how the plugin's optimizers behave at its hooks, on the CPU.

    python scaled-onetrainer/checks/behaviour.py --onetrainer DIR --work FOLDER [--only TEXT] [--table FILE]

To be run with the checkout's own Python, with the plugin installed there.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

from scaled_onetrainer.members import MEMBERS

import torch

import report
from safetensors.torch import save_file
from upstream import Run, config_of, steps_of, train, trained_parameters

ADAMW = {"optimizer": {"optimizer": "SCALED_ADAMW_ADV", "scaled_optm": True}}
RESUMED = {"epochs": 2, "continue_last_backup": True, "clear_cache_before_training": False}


def optimizer(name: str, **options: Any) -> dict[str, Any]:
    """The section of a config that names an optimizer."""
    start = {"lora_init": "ORTHONORMAL"} if name == "STIEFEL_LORA" else {}
    return {"optimizer": {"optimizer": name, **options}, **start}


def same(first: Run, second: Run) -> int:
    """The number of parameters, which are the same to the bit after both runs."""
    one, other = trained_parameters(first), trained_parameters(second)
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{len(different)} of {len(one)} differ, {different[0]}"
    return len(one)


def fused(name: str, folder: Path, **changes: Any) -> str:
    """A fused backward pass comes to the bits of a plain one."""
    runs = [train(config_of(folder / str(on), optimizer(name, fused_back_pass=on), changes)) for on in (False, True)]
    return f"{same(*runs)} parameters with equal bits after {len(runs[0].losses)} steps"


def group_added(folder: Path) -> str:
    """A component that is trained from the second run on begins anew, the other goes on.

    OneTrainer itself does so in full fine-tuning only: it does not resume a LoRA for which there are new components.
    """
    train(config_of(folder, FULL, ADAMW, {"text_encoder": {"train": False}}))
    run = train(config_of(folder, FULL, ADAMW, RESUMED), fresh=False)
    steps = steps_of(run)
    old = {count for name, count in steps.items() if name.startswith("unet.")}
    new = {count for name, count in steps.items() if not name.startswith("unet.")}
    assert (old, new) == ({8}, {4}), (old, new)
    line = next(line for line in run.said if "new:" in line)
    return f"U-Net 8 steps, text encoder 4; said: {line}"


def other_optimizer(folder: Path) -> str:
    """A backup of OneTrainer's AdamW, and one of ours with its AdamW."""
    train(config_of(folder, {"optimizer": {"optimizer": "ADAMW"}}))
    run = train(config_of(folder, ADAMW, RESUMED), fresh=False)
    assert set(steps_of(run).values()) == {4}
    line = next(line for line in run.said if "backup's optimizer state" in line)
    back = train(config_of(folder, {"optimizer": {"optimizer": "ADAMW"}}, {**RESUMED, "epochs": 3}), fresh=False)
    assert type(back.optimizer).__name__ == "AdamW" and len(back.losses) == 4
    return f"said: {line}"


def changed_option(folder: Path) -> str:
    """An option that is not that of the backup is named."""
    train(config_of(folder, ADAMW))
    run = train(config_of(folder, ADAMW, {"optimizer": {"beta2": 0.95}}, RESUMED), fresh=False)
    line = next(line for line in run.said if "changed since the backup" in line)
    assert "beta2" in line and "0.95" in line and line.count("→") == 1, line
    assert set(steps_of(run).values()) == {8}
    return f"said: {line}"


def curves(folder: Path) -> str:
    """OneTrainer's TensorBoard gets the size of steps by role, β₂ where it moves, and Prodigy's d."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: set[str] = set()
    for name, options in (("SCALED_ADAMW_ADV", {"kourkoutas_beta": True}), ("SCALED_PRODIGY_ADV", {})):
        config = config_of(folder / name, optimizer(name, **options), {"tensorboard": True})
        # its own server is none of this check's business
        config.tensorboard_always_on = True
        train(config)
        for file in Path(config.workspace_dir).rglob("events.*"):
            events = EventAccumulator(str(file))
            events.Reload()
            found |= {tag for tag in events.Tags()["scalars"] if tag.startswith("optimizer/")}
    expected = {f"optimizer/{what}/{role}" for what in ("update_rms", "beta2") for role in ("LORA_DOWN", "LORA_UP")}
    assert expected | {"optimizer/d"} <= found, found
    return ", ".join(sorted(found))


def spawned_child(folder: Path) -> str:
    """A child as OneTrainer's multi-GPU training starts them knows our members, if the plugin is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "child.json"
    # nothing of this script is imported again in the child
    script = f"import torch, child; torch.multiprocessing.spawn(child.list_members, args=({str(path)!r},), nprocs=1)"
    paths = [os.getcwd(), str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    known = json.loads(path.read_text())
    assert set(MEMBERS) <= set(known), known
    return f"{len(MEMBERS)} optimizers of ours among {len(known)} in the child"


def without_plugin(folder: Path) -> str:
    """A preset of ours stops with a word where the plugin is switched off, and where it is not installed."""
    config = folder / "config.json"
    folder.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(config_of(folder, ADAMW).to_settings_dict(secrets=False)))
    said = [_stops(config, hidden) for hidden in (False, True)]
    assert not (folder / "out.safetensors").exists(), "it saved something"
    assert "scaled-onetrainer" in said[0] and "scaled_onetrainer" in said[1], said
    return "; ".join(said)


def backup_without_plugin(folder: Path) -> str:
    """OneTrainer alone does not take the numbers of an ELEMENTS backup for its own."""
    own = {**OFT, "optimizer": {"optimizer": "ADAMW"}}
    train(config_of(folder, OFT, {"oft_scale_mode": "ELEMENTS"}, ADAMW))
    config = folder / "config.json"
    config.write_text(json.dumps(config_of(folder, own, RESUMED).to_settings_dict(secrets=False)))
    said = _stops(config, hidden=True)
    assert "scaled_oft_elements" in said or "loading of module key" in said, said
    return said


def _stops(config: Path, hidden: bool) -> str:
    """The last line that a run of scripts/train.py says which has to fail.

    Args:
        hidden: whether the plugin is as good as not installed, and not only switched off.
    """
    hide = "import child; child.hide(); " if hidden else ""
    script = (
        f"import sys, runpy; sys.path.append({str(Path(__file__).parent)!r}); {hide}"
        "sys.path.insert(0, 'scripts'); "
        f"sys.argv = ['train.py', '--config-path', {str(config)!r}]; "
        "runpy.run_path('scripts/train.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "SCALED_ONETRAINER": "0"}, capture_output=True, text=True
    )
    assert done.returncode != 0, "it trained"
    return done.stderr.strip().splitlines()[-1]


def scaler(folder: Path) -> str:
    """With OneTrainer's gradient scaler a fused backward pass calls no step(): Prodigy's d moves all the same."""
    from modules.util.CustomGradScaler import CustomGradScaler
    from scaled_onetrainer.describe import Description
    from scaled_onetrainer.PluginOptimizer import PluginOptimizer

    weights = [torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4))]
    for place, weight in enumerate(weights):
        weight.parameter_info = Description("HIDDEN" if place == 0 else "VECTOR", f"weight {place}")
    made = PluginOptimizer([{"params": weights, "name": "part"}], "PRODIGY_ADV", 1.0)
    custom = CustomGradScaler.__new__(CustomGradScaler)
    torch.amp.GradScaler.__init__(custom, device="cpu", init_scale=8.0)
    found = []
    for factor in (1.0, 1.0, float("inf"), 1.0, 1.0, 1.0):
        loss = sum((weight * factor).square().sum() for weight in weights)
        custom.scale(loss).backward()
        for place, weight in enumerate(weights):
            custom.unscale_parameter_(weight, made)
            custom.maybe_opt_step_parameter(weight, made.param_groups[0], place, made)
            weight.grad = None
        custom.step_after_unscale_parameter_(made)
        custom.update()
        made.zero_grad(set_to_none=True)
        found.append(made.read_statistics()["d"])
    assert all(weight.isfinite().all() for weight in weights)
    assert found[-1] > found[0], found
    return f"d {found[0]:.2e} → {found[-1]:.2e} over 6 steps, one of which overflowed"


def plain(changes: dict[str, Any], folder: Path) -> str:
    """Trains, and resumes with all states."""
    epochs = changes.get("epochs", 1)
    train(config_of(folder, ADAMW, changes))
    run = train(config_of(folder, ADAMW, changes, {**RESUMED, "epochs": 2 * epochs}), fresh=False)
    assert set(steps_of(run).values()) == {8}, set(steps_of(run).values())
    assert all(value.isfinite().all() for value in trained_parameters(run).values())
    return f"4 + 4 steps, {len(steps_of(run))} states resumed"


def captured(name: str, changes: dict[str, Any], folder: Path) -> str:
    """Writes down the first step of a run, which same_step.py repeats with our own trainer."""
    tensors: dict[str, torch.Tensor] = {}
    facts: dict[str, Any] = {}

    def capture(trainer: Any) -> None:
        made = trainer.model.optimizer
        step = made.step

        def captured_step(_: Any, *args: Any, **kwargs: Any) -> Any:
            if facts:
                return step(*args, **kwargs)
            infos = [(p, p.parameter_info) for group in made.param_groups for p in group["params"]]
            facts.update(
                case=name, config=changes, learning_rate=made.param_groups[0]["lr"],
                parameters=[
                    {"name": i.name, "role": i.role, "pair": i.pair, "scale": i.forward_scale} for _, i in infos
                ],
            )  # fmt: skip
            for kind, value in (("start", lambda p: p), ("gradient", lambda p: p.grad)):
                tensors.update({f"{kind}/{i.name}": value(p).detach().clone() for p, i in infos if p.grad is not None})
            step(*args, **kwargs)
            tensors.update({f"end/{i.name}": p.detach().clone() for p, i in infos if p.grad is not None})
            return None

        # schedulers wrap the method that they find
        made.step = MethodType(captured_step, made)

    run = train(config_of(folder, changes), before_training=capture)
    save_file(tensors, folder / "step.safetensors")
    (folder / "step.json").write_text(json.dumps(facts, indent=1))
    save_file(
        {name: value.contiguous() for name, value in trained_parameters(run).items()}, folder / "trained.safetensors"
    )
    return f"{len(facts['parameters'])} parameters, {sum(name.startswith('gradient/') for name in tensors)} gradients"


OFT = {"peft_type": "OFT_2", "oft_block_size": 16, "oft_scaled": True}
CAPTURED = {
    "LoRA, AdamW": {**optimizer("SCALED_ADAMW_ADV", scaled_optm=True, centered_wd=0.01, weight_decay=0.1)},
    "LoRA, Stiefel": optimizer("STIEFEL_LORA"),
    "LoRA, RITE": optimizer("LORA_RITE"),
    "LoRA, Muon": optimizer("SCALED_MUON_ADV"),
    "DoRA, AdamW": {"lora_decompose": True, **optimizer("SCALED_ADAMW_ADV", scaled_optm=True)},
    "OFT ELEMENTS, AdamW": {**OFT, "oft_scale_mode": "ELEMENTS", **optimizer("SCALED_ADAMW_ADV", scaled_optm=True)},
    "OFT ROW, AdamW": {**OFT, **optimizer("SCALED_ADAMW_ADV", scaled_optm=True)},
    "LoHa, AdamW": {"peft_type": "LOHA", **optimizer("SCALED_ADAMW_ADV", scaled_optm=True)},
    "LoKr, AdamW": {"peft_type": "LOKR", "lokr_dim": 4, **optimizer("SCALED_ADAMW_ADV", scaled_optm=True)},
    "LoRA in bfloat16, AdamW": {
        "lora_weight_dtype": "BFLOAT_16",
        "train_dtype": "BFLOAT_16",
        **optimizer("SCALED_ADAMW_ADV", scaled_optm=True, stochastic_rounding=True, state_precision="bf16_sr"),
    },
    "full fine-tuning, AdamW": {
        "training_method": "FINE_TUNE", "output_model_format": "DIFFUSERS", "learning_rate": 1e-5,
        **optimizer("SCALED_ADAMW_ADV", scaled_optm=True, centered_wd=0.01, centered_wd_mode="int4"),
    },
}  # fmt: skip
FULL = {"training_method": "FINE_TUNE", "output_model_format": "DIFFUSERS", "learning_rate": 1e-5}
OFFLOADED = {
    **FULL, "gradient_checkpointing": "CPU_OFFLOADED", "unet": {"offload_fraction": 0.5},
    "optimizer": {"fused_back_pass": True},
}  # fmt: skip
PLAIN = {
    "LoRA in bfloat16, rounded at random": {"lora_weight_dtype": "BFLOAT_16", "train_dtype": "BFLOAT_16"},
    "full fine-tuning in bfloat16": {
        **FULL, "train_dtype": "BFLOAT_16", "unet": {"weight_dtype": "BFLOAT_16"},
        "text_encoder": {"weight_dtype": "BFLOAT_16"},
    },
    "layer offloading": OFFLOADED,
    "EMA": {"ema": "CPU"},
    "gradient accumulation": {"gradient_accumulation_steps": 2, "epochs": 2},
    "embedding": {
        "training_method": "EMBEDDING", "learning_rate": 0.001, "output_model_format": "SAFETENSORS",
        "embedding": {"placeholder": "lumo", "token_count": 2, "initial_embedding_text": "*", "train": True},
    },
}  # fmt: skip


def checks() -> list[tuple[str, Callable[[Path], str]]]:
    return [
        *((f"fused = unfused, {name}", lambda folder, name=name: fused(name, folder)) for name in (
            "SCALED_ADAMW_ADV", "SCALED_PRODIGY_ADV", "STIEFEL_LORA", "LORA_RITE"
        )),
        ("fused = unfused, full fine-tuning", lambda folder: fused("SCALED_ADAMW_ADV", folder, **FULL)),
        ("a group added later", group_added),
        ("another optimizer's backup", other_optimizer),
        ("a changed option is named", changed_option),
        ("curves", curves),
        ("a spawned child", spawned_child),
        ("without the plugin", without_plugin),
        ("a backup of OFT ELEMENTS without the plugin", backup_without_plugin),
        ("gradient scaler", scaler),
        *((f"trains and resumes: {name}", lambda folder, changes=changes: plain(changes, folder))
          for name, changes in PLAIN.items()),
        *((f"first step of {name}", lambda folder, name=name, changes=changes: captured(name, changes, folder))
          for name, changes in CAPTURED.items()),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(report.main(__doc__, checks))
