import hashlib
import json
from pathlib import Path
from typing import Any

from benchmarks.torture.ForkedRun import ForkedRun, train_script

CHECKPOINTING_OFF = {"gradient_checkpointing": False}
SAMPLE = {"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 2}
# seven images in four batches, ten times; everything that a run writes, it writes often
OPTIONS: dict[str, Any] = {
    "training_method": "LORA", "model_type": "STABLE_DIFFUSION_15", "output_model_format": "KOHYA_LORA",
    "lora_rank": 4, "lora_alpha": 4.0, "learning_rate": 0.01, "learning_rate_warmup_steps": 0, "resolution": "32",
    "batch_size": 2, "epochs": 10, "train_dtype": "FLOAT_32", "tensorboard": False, "train_device": "cpu",
    "clear_cache_before_training": False, "unet": CHECKPOINTING_OFF,
    "text_encoder": {"train": False, **CHECKPOINTING_OFF}, "samples": [SAMPLE], "sample_after": 4,
    "sample_after_unit": "STEP", "backup_after": 1, "backup_after_unit": "STEP", "rolling_backup": True,
    "rolling_backup_count": 2, "save_every": 3, "save_every_unit": "STEP",
}  # fmt: skip


class MiniatureRun:
    """A run of the miniature in folders of its own.

    Args:
        root: folder of its own, made here.
        base: the miniature, see `save_pipeline`.
        images: folder with captioned images.
        changes: options of the config that differ from `OPTIONS`.
    """

    def __init__(self, root: Path, base: Path, images: Path, changes: dict[str, Any]) -> None:
        self.root, self.config, self.log = root, root / "config.json", root / "log.txt"
        self.workspace, self.cache, self.output = root / "ws", root / "cache", root / "out" / "lora.safetensors"
        root.mkdir(parents=True)
        options = {
            "base_model_name": str(base), "workspace_dir": str(self.workspace), "cache_dir": str(self.cache),
            "output_model_destination": str(self.output), "concepts": [{"path": str(images)}], **OPTIONS, **changes,
        }  # fmt: skip
        self.config.write_text(json.dumps(options), encoding="utf-8")

    def start(self, *overrides: str) -> ForkedRun:
        """Begins a process that trains."""
        arguments = [part for override in overrides for part in ("--override", override)]
        return ForkedRun(train_script(self.config, *arguments), self.log)

    def finish(self, *overrides: str, seconds: float = 300) -> int | None:
        """Trains to the end; the exit status, None where there was no end in time."""
        run = self.start(*overrides)
        status = run.wait(seconds)
        if status is None:
            run.kill()
        return status

    def finish_undisturbed(self) -> None:
        """Trains to the end, to compare with; RuntimeError if that fails, so that nothing is compared with nothing."""
        if (status := self.finish()) != 0:
            raise RuntimeError(f"{self.root}: a run that nobody disturbed ended with {status}\n{self.words()}")

    def digest(self) -> str:
        """sha256 of the output; "" where there is none."""
        return hashlib.sha256(self.output.read_bytes()).hexdigest() if self.output.is_file() else ""

    def backups(self) -> list[str]:
        """Names of backups, unfinished ones included."""
        folder = self.workspace / "backup"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def words(self) -> str:
        """What all its processes have printed."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
