"""Runs a checkout of OneTrainer on the tiny base, as its own scripts/train.py would, and looks at what it did."""

import contextlib
import io
import json
import random
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
TINY_BASE = REPOSITORY / "models" / "tiny_sd"
CONCEPTS = REPOSITORY / "training_concepts" / "tiny_concept"
# what a run of four steps on the tiny base says beside its optimizer
COMMON = {
    "model_type": "STABLE_DIFFUSION_15",
    "base_model_name": str(TINY_BASE),
    "training_method": "LORA",
    "peft_type": "LORA",
    "lora_rank": 4,
    "lora_alpha": 4.0,
    "output_model_format": "KOHYA_LORA",
    "output_dtype": "FLOAT_32",
    "resolution": "64",
    "batch_size": 4,
    "epochs": 1,
    "learning_rate": 0.001,
    "learning_rate_warmup_steps": 0,
    # OneTrainer clips each gradient by itself in a fused backward pass, and all together otherwise
    "clip_grad_norm": None,
    "train_device": "cpu",
    "temp_device": "cpu",
    "train_dtype": "FLOAT_32",
    "fallback_train_dtype": "FLOAT_32",
    "weight_dtype": "FLOAT_32",
    "lora_weight_dtype": "FLOAT_32",
    "unet": {"train": True, "weight_dtype": "FLOAT_32"},
    "text_encoder": {"train": True, "weight_dtype": "FLOAT_32", "stop_training_after_unit": "NEVER"},
    "vae": {"weight_dtype": "FLOAT_32"},
    "gradient_checkpointing": "OFF",
    "dataloader_threads": 1,
    "sample_after_unit": "NEVER",
    "backup_after_unit": "NEVER",
    "save_every_unit": "NEVER",
    "validate_after_unit": "NEVER",
    "tensorboard": False,
    "samples": [],
    "embedding": {"uuid": "embedding"},
}


@dataclass
class Run:
    """What a run left behind.

    Attributes:
        trainer: OneTrainer's, after the end.
        said: every line that it printed.
        losses: one of each step.
        file: the model that it saved.
        state: of the optimizer, at the end.
    """

    trainer: Any
    said: list[str]
    losses: list[float]
    file: Path
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def optimizer(self) -> Any:
        return self.trainer.model.optimizer

    def says(self, text: str) -> bool:
        """Whether it printed a line with a text."""
        return any(text in line for line in self.said)


def enter(checkout: Path) -> None:
    """Makes a checkout's modules importable; its relative paths count from it, too."""
    import os

    os.chdir(checkout)
    sys.path.insert(0, str(checkout))


def merged(*sections: Mapping[str, Any]) -> dict[str, Any]:
    """Configs one over the other, at every depth."""
    found: dict[str, Any] = {}
    for section in sections:
        for key, value in section.items():
            old = found.get(key)
            found[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return found


def config_of(folder: Path, *changes: Mapping[str, Any]) -> Any:
    """A `TrainConfig` of OneTrainer for a run inside `folder`, read as its scripts read one."""
    from modules.util.config.TrainConfig import TrainConfig

    folder.mkdir(parents=True, exist_ok=True)
    concepts = folder / "concepts.json"
    # what OneTrainer would draw at random is said
    kind = {"enabled": True, "seed": 7, "text": {"prompt_source": "sample"}, "image": {}}
    concepts.write_text(json.dumps([{**kind, "name": n, "path": str(CONCEPTS / n)} for n in ("lumo", "vintage")]))
    (folder / "samples.json").write_text("[]")
    places = {
        "workspace_dir": str(folder / "workspace"),
        "cache_dir": str(folder / "cache"),
        "output_model_destination": str(folder / "out.safetensors"),
        "concept_file_name": str(concepts),
        "sample_definition_file_name": str(folder / "samples.json"),
    }
    config = TrainConfig.default_values()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        # as a built-in preset: written for this version, so nothing has to be migrated
        config.from_dict(json.loads(json.dumps(merged(COMMON, places, *changes))), migrate=False)
    assert "Could not set" not in said.getvalue(), said.getvalue()
    return config


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """The lines that are printed inside, which are printed nowhere else."""
    out, lines = io.StringIO(), []
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            yield lines
        finally:
            lines += out.getvalue().splitlines()


def seed_everything(seed: int = 0) -> None:
    """Start values and everything else that is drawn depend on this alone."""
    random.seed(seed)
    torch.manual_seed(seed)
    with contextlib.suppress(ImportError):
        import numpy

        numpy.random.seed(seed)


def train(config: Any, fresh: bool = True, before_training: Any = None) -> Run:
    """Trains as scripts/train.py does.

    Args:
        fresh: whether what an earlier run left in the workspace is removed first.
        before_training: is called with the trainer when everything is made.
    """
    from modules.util import create
    from modules.util.callbacks.TrainCallbacks import TrainCallbacks
    from modules.util.commands.TrainCommands import TrainCommands

    if fresh:
        output = Path(config.output_model_destination)
        for path in (Path(config.workspace_dir), output):
            shutil.rmtree(path, ignore_errors=True)
        output.unlink(missing_ok=True)
    seed_everything()
    losses: list[float] = []
    with listening() as said:
        trainer = create.create_trainer(config, TrainCallbacks(), TrainCommands())
        trainer.start()
        add = trainer.tensorboard.add_scalar

        def add_scalar(tag: str, value: Any, *args: Any, **kwargs: Any) -> None:
            if tag == "loss/train_step":
                losses.append(float(value))
            add(tag, value, *args, **kwargs)

        trainer.tensorboard.add_scalar = add_scalar
        if before_training is not None:
            before_training(trainer)
        trainer.train()
        trainer.end()
    run = Run(trainer, said, losses, Path(config.output_model_destination))
    run.state = trainer.model.optimizer.state_dict()
    return run


def trained_parameters(run: Run) -> dict[str, Tensor]:
    """What was trained, by the name that the plugin gave it; by place if it gave none."""
    found = {}
    for parameter in run.trainer.parameters:
        info = getattr(parameter, "parameter_info", None)
        found[info.name if info else f"parameter {len(found)}"] = parameter.detach()
    return found


def steps_of(run: Run) -> dict[str, int]:
    """How many steps each parameter's state has seen, by name."""
    names = [name for group in run.state["param_groups"] for name in group["param_names"]]
    return {name: int(run.state["state"][place]["step"]) for place, name in enumerate(names)}
