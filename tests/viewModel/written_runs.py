"""Runs as they lie on a disk, without a training."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

PROMPTS = ("0 - a red shape", "1 - a blue shape")


def write_events(file: Path, events: Sequence[dict]) -> None:
    """A file of events."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(event)}\n" for event in events), encoding="utf-8")


def write_record(
    workspace: Path, name: str = "2026-01-02_03-04-05", steps: int = 30, at: float = 1e9, state: str = "finished",
    level: float = 1.0, pictures: Sequence[int] = (), **config: object,
) -> Path:  # fmt: skip
    """A run of the command line: its record and its pictures; returns the record's folder."""
    events: list[dict] = [{"kind": "begin", "time": at, "step": 0, "total": steps}]
    for step in range(1, steps + 1):
        values = {"loss/train": level / step, "learning_rate/unet": 1e-3, "seconds/step": 2.0}
        events.append({"kind": "scalars", "time": at + 2 * step, "step": step, "values": values})
    for step in pictures:
        files = [f"samples/{prompt}/step-{step:06d}.png" for prompt in PROMPTS]
        for number, file in enumerate(files):
            (workspace / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (48, 32), (40 * number, step % 256, 90)).save(workspace / file)
        events.append({"kind": "pictures", "time": at + step, "step": step, "files": files})
    events.append({"kind": "scalars", "time": at, "step": steps, "values": {"loss/validation": level}})
    events += [{"kind": "end", "time": at + 100, "state": state}] if state else []
    folder = workspace / "record" / name
    write_events(folder / "events.jsonl", events)
    told = {"training_method": "LORA", "model_type": "STABLE_DIFFUSION_XL_10_BASE", "workspace_dir": str(workspace)}
    told |= {"output_model_destination": f"models/{workspace.name}.safetensors", **config}
    (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


def write_session(
    folder: Path, workspace: Path, record: Path | None = None, at: float = 2e9, end: str = "stopped"
) -> None:
    """A run as the window has started it."""
    events: list[dict] = [{"kind": "status", "time": at, "text": "Loading"}]
    events += [{"kind": "record", "time": at, "path": str(record)}] if record else []
    for step in (1, 2, 3):
        events.append({"kind": "step", "time": at + step, "step": step, "total": 9, "epoch": 0, "loss": 0.5,
                       "learning_rates": {"unet": 0.1}, "seconds": 1.0})  # fmt: skip
    events += [{"kind": "validation", "step": 2, "loss": loss} for loss in (0.7, 0.6)]
    events += [{"kind": "ended", "status": end, "error": "no room" if end == "failed" else ""}] if end else []
    write_events(folder / "events.jsonl", events)
    config = {"workspace_dir": str(workspace), "output_model_destination": "models/mine.safetensors"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
