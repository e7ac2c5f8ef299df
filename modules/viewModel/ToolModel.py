"""What the tab of tools does: the alpha calculator here, everything else by the scripts in processes of their own."""

import json
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.UserError import UserError
from modules.viewModel.FormField import FormSection
from modules.viewModel.FormModel import FormModel

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
G = OptionGroup.ADAPTER
KEEP = "as it is"


class AlphaInput(BaseConfig):
    """What the alpha calculator starts from."""

    lora_rank: int = option(16, "Rank", "Rank of the adapter. It is not changed.", G, ge=1)
    lora_alpha: float = option(1.0, "Alpha now", "Alpha that the other values belong to.", G, gt=0)
    learning_rate: float = option(3e-4, "Learning rate now", "Learning rate that goes with it.", G, ge=0)
    optimizer: Optimizer = option(
        Optimizer.ADAMW, "Optimizer", "How steps go with the gradient's size depends on it.", G
    )
    new_alpha: float = option(16.0, "New alpha", "Alpha that training is to have, with all else equivalent.", G, gt=0)


class InspectInput(BaseConfig):
    """What the inspector reads."""

    adapter: str = option("", "Adapter", "The adapter file.", G, path="file")
    base: str = option(
        "", "Base model", "Folder or file. Only rotations and DoRA need it, for their norms.", G, path="model"
    )


class ConvertInput(BaseConfig):
    """What the converter reads and writes."""

    adapter: str = option("", "Adapter", "The adapter file that is read.", G, path="file")
    output: str = option("", "Written file", "The file to write.", G, path="file")
    format: str = option(
        KEEP, "Format", "Names of the weights in the file.", G,
        choices=(KEEP, "KOHYA_LORA", "COMFY_LORA", "DIFFUSERS_LORA", "ORIGINAL_LORA", "LEGACY_LORA", "INTERNAL"),
    )  # fmt: skip
    kind: str = option(KEEP, "Kind", "lora: of the rank below; diff: the whole change of each layer.", G,
                       choices=(KEEP, "lora", "diff"))  # fmt: skip
    rank: int | None = option(None, "Rank", "Of the written LoRA. null: as it is.", G, ge=1)
    alpha: float | None = option(None, "Alpha", "For the same change of the model. null: as it is.", G, gt=0)
    dtype: str = option(KEEP, "Number format", "Of the written weights.", G,
                        choices=(KEEP, "FLOAT_32", "FLOAT_16", "BFLOAT_16"))  # fmt: skip
    base: str = option(
        "", "Base model", "Folder or file. Needed for rotations and DoRA, and for diff.", G, path="model"
    )
    overwrite: bool = option(False, "Overwrite", "Replaces the written file if it exists.", G)


class RankInput(BaseConfig):
    """What the plot of effective ranks reads."""

    adapter: str = option("", "Adapter", "The adapter file.", G, path="file")
    other: str = option("", "Beside it", "Another adapter file to compare with. Empty: none.", G, path="file")


@dataclass(frozen=True)
class ToolResult:
    """What a tool found.

    Attributes:
        text: for people.
        picture: PNG file, None if there is none.
        values: path -> value for the run's config, if they can be applied.
    """

    text: str
    picture: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)


def tool_section(form: FormModel, title: str, help: str) -> FormSection:
    """All fields of a tool under one heading."""
    return FormSection(title, title, help, G, False, list(form.fields.values()))


def alpha_input(config: TrainConfig) -> AlphaInput:
    """What the run's config has now, with alpha = rank as the wish."""
    return AlphaInput(
        lora_rank=config.lora_rank, lora_alpha=config.lora_alpha, learning_rate=config.learning_rate,
        optimizer=config.optimizer.optimizer, new_alpha=float(config.lora_rank),
    )  # fmt: skip


def rebase(config: TrainConfig, wish: AlphaInput) -> ToolResult:
    """Another alpha, and everything that has to change with it so that training stays what it was. Loads torch.

    Args:
        config: of the run: its adapter and the options of its optimizer count, if it is the wished one.
        wish: what is to be changed.

    Raises:
        UserError: the adapter has no alpha, or the optimizer knows no other alpha.
    """
    if wish.new_alpha == wish.lora_alpha:
        return ToolResult("The new alpha is the one that it has now; nothing changes.")
    from modules.trainer.rebase_config import rebase_config

    old = config.model_copy(deep=True)
    old.training_method = TrainingMethod.LORA
    old.lora_rank, old.lora_alpha, old.learning_rate = wish.lora_rank, wish.lora_alpha, wish.learning_rate
    if old.optimizer.optimizer != wish.optimizer:
        old.optimizer = type(old.optimizer)(optimizer=wish.optimizer)
    remarks: list[str] = []
    new = rebase_config(old, wish.new_alpha, remarks.append)
    changes = dict(_changes(old, new))
    lines = [f"{'option':<34}{'now':>14}{'then':>14}"]
    lines += [f"{path:<34}{_number(before):>14}{_number(after):>14}" for path, (before, after) in changes.items()]
    strength = [alpha / wish.lora_rank for alpha in (wish.lora_alpha, wish.new_alpha)]
    lines += ["", f"alpha / rank goes from {strength[0]:.4g} to {strength[1]:.4g}.\nTraining stays the same with these"
              " values, but for rounding."]  # fmt: skip
    lines += [f"note: {remark}" for remark in remarks]
    applies = config.training_method == TrainingMethod.LORA and config.optimizer.optimizer == wish.optimizer
    values = {path: after for path, (_, after) in changes.items()} if applies else {}
    return ToolResult("\n".join(lines), values={"lora_rank": wish.lora_rank, **values} if values else {})


def _changes(old: BaseConfig, new: BaseConfig, prefix: str = ""):
    for name in type(old).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, BaseConfig) and isinstance(after, BaseConfig):
            yield from _changes(before, after, f"{prefix}{name}.")
        elif before != after and not isinstance(after, (BaseConfig, list, dict)):
            yield f"{prefix}{name}", (before, after)


def _number(value: Any) -> str:
    return "default" if value is None else f"{value:.6g}" if isinstance(value, (int, float)) else str(value)


def inspect(wish: InspectInput) -> ToolResult:
    """Kind, rank, alpha, norm and effective rank of each layer of an adapter file."""
    _need(wish.adapter, "an adapter file")
    return ToolResult(run_script("convert_adapter.py", wish.adapter, "--info", *_given("--base", wish.base)))


def convert(wish: ConvertInput) -> ToolResult:
    """Writes an adapter in another form; nothing is replaced unless `overwrite` says so."""
    _need(wish.adapter, "an adapter file")
    _need(wish.output, "the file to write")
    arguments = [wish.adapter, wish.output]
    for flag, value in (("--format", wish.format), ("--to", wish.kind), ("--dtype", wish.dtype)):
        arguments += _given(flag, "" if value == KEEP else value)
    arguments += _given("--rank", wish.rank) + _given("--alpha", wish.alpha) + _given("--base", wish.base)
    return ToolResult(run_script("convert_adapter.py", *arguments, *(["--overwrite"] if wish.overwrite else [])))


def effective_rank(wish: RankInput, picture: Path) -> ToolResult:
    """A plot and a table of how many directions each layer of an adapter really uses.

    Args:
        wish: what is read.
        picture: PNG file that is written.
    """
    _need(wish.adapter, "an adapter file")
    files = [wish.adapter, *([wish.other] if wish.other.strip() else [])]
    return ToolResult(run_script("effective_rank.py", *files, "--plot", str(picture)), picture)


def estimate_memory(config: TrainConfig) -> ToolResult:
    """Where the memory of a run of this config will go. The base model must be there, or its description be known."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config.to_dict()), encoding="utf-8")
        return ToolResult(run_script("estimate_memory.py", str(path)))


def run_script(name: str, *arguments: str) -> str:
    """Runs a script of the project to its end and returns what it prints.

    Raises:
        UserError: with what it says is wrong.
    """
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / name), *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        errors = [line.partition("error: ")[2] for line in said if line.startswith("error: ")]
        raise UserError(errors[-1] if errors else said[-1] if said else f"{name} ended with status {done.returncode}.")
    return done.stdout.rstrip()


def _need(text: str, what: str) -> None:
    if not text.strip():
        raise UserError(f"Choose {what} first.")


def _given(flag: str, value: Any) -> list[str]:
    return (
        []
        if value is None or not str(value).strip()
        else [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    )


class TensorBoard:
    """TensorBoard on a workspace's logs, in a process of its own that ends with the window."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._folder: Path | None = None
        self.address = ""

    def open(self, workspace: Path, seconds: float = 60) -> str:
        """Starts it, unless it runs on this folder already; returns its address once it answers. Takes seconds.

        Raises:
            UserError: it does not start.
        """
        folder = workspace / "tensorboard"
        if self._process is not None and self._process.poll() is None and folder == self._folder:
            return self.address
        self.close()
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._folder, self.address = folder, f"http://127.0.0.1:{port}"
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return self.address
            time.sleep(0.1)
        self.close()
        raise UserError("TensorBoard does not start. Is it installed? pip install tensorboard.")

    def close(self) -> None:
        """Ends it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        self._process = None
