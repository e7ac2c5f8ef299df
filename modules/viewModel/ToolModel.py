"""What the tab of tools does: the alpha calculator here, everything else by the scripts in processes of their own."""

import json
import tempfile
import textwrap
import webbrowser
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from modules.tool.caption_names import KNOWN_MODELS
from modules.tool.coord_check.methods import BATCH, BLOCKS, BOUND, CHECKED, RANKS, USUAL, WARM
from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.texts import later, tr
from modules.util.UserError import UserError
from modules.viewModel.FormField import FormSection
from modules.viewModel.FormModel import FormModel
from modules.viewModel.TensorBoard import TensorBoard
from modules.viewModel.ToolProcess import ToolCancelled, ToolProcess

G = OptionGroup.ADAPTER
NOTE_WIDTH = 80
# what the command line calls by its options has fields here; the longer ones first
FORM_WORDS = {
    "give --overwrite": later("switch on Overwrite"),
    "give --neumann": later("switch on Neumann series"),
    "by --neumann": later("as chosen"),
    "scripts/convert_adapter.py IN OUT --format KOHYA_LORA": later("the converter, Format KOHYA_LORA"),
    "by --base": later("in Base model"),
    "--base": later("Base model"),
    "--override train_dtype=FLOAT_32": later("the same config with train_dtype FLOAT_32"),
    "--device cpu": later("train_device cpu"),
    "--model:": later("Model:"),
    "--prompt:": later("Prompt:"),
    "--methods": later("Methods"),
    "--ranks": later("Ranks"),
    "--blocks": later("Block sizes"),
    "--widths": later("Another base model"),
    "--batch": later("Batch"),
    "--steps": later("Steps before"),
    "--adapter": later("Adapter"),
    "--strengths": later("Strengths"),
    "--rate": later("Learning rate"),
    "--bound": later("Bound"),
    "--format": later("Format"),
    "--rank": later("Rank"),
    "--alpha": later("Alpha"),
    "--dtype": later("Number format"),
    "--to": later("Kind"),
}


def _listed(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


class AdapterFormat(StrEnum):
    """The formats that the converter writes."""

    KOHYA_LORA = "KOHYA_LORA"
    COMFY_LORA = "COMFY_LORA"
    DIFFUSERS_LORA = "DIFFUSERS_LORA"
    ORIGINAL_LORA = "ORIGINAL_LORA"
    LEGACY_LORA = "LEGACY_LORA"
    INTERNAL = "INTERNAL"


class AdapterShape(StrEnum):
    """The kinds that the converter makes of others."""

    LORA = "lora"
    DIFF = "diff"


class WrittenType(StrEnum):
    """The number formats that the converter writes."""

    FLOAT_32 = "FLOAT_32"
    FLOAT_16 = "FLOAT_16"
    BFLOAT_16 = "BFLOAT_16"


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
    output: str = option("", "Written file", "The file to write.", G, path="output")
    format: AdapterFormat | None = option(None, "Format", "Names of the weights in the file. null: as it is.", G)
    kind: AdapterShape | None = option(
        None, "Kind", "lora: of the rank below; diff: the whole change of each layer. null: as it is.", G
    )
    rank: int | None = option(None, "Rank", "Of the written LoRA. null: as it is.", G, ge=1)
    alpha: float | None = option(None, "Alpha", "For the same change of the model. null: as it is.", G, gt=0)
    dtype: WrittenType | None = option(None, "Number format", "Of the written weights. null: as it is.", G)
    base: str = option(
        "", "Base model", "Folder or file. Needed for rotations and DoRA, and for diff.", G, path="model"
    )
    neumann: bool = option(
        False, "Neumann series", "Rotations are computed as OneTrainer trains them, where the file does not say.", G
    )
    overwrite: bool = option(False, "Overwrite", "Replaces the written file if it exists.", G)


class MergeInput(BaseConfig):
    """What is merged into a base model."""

    adapter: str = option("", "Adapter", "The adapter file.", G, path="file")
    base: str = option("", "Base model", "Folder or file of the model that it was trained for.", G, path="model")
    output: str = option("", "Written folder", "The merged model, a folder in diffusers' layout.", G, path="folder")
    dtype: WrittenType | None = option(None, "Number format", "Of the written weights. null: as it is.", G)
    neumann: bool = option(
        False, "Neumann series", "Rotations are computed as OneTrainer trains them, where the file does not say.", G
    )
    overwrite: bool = option(False, "Overwrite", "Replaces the written folder if it holds a model.", G)


class ExtractInput(BaseConfig):
    """Between which models the change is found."""

    base: str = option("", "Base model", "Folder or file of the model that the other one was made of.", G, path="model")
    tuned: str = option("", "Changed model", "Folder or file of the model whose change is wanted.", G, path="model")
    output: str = option("", "Written file", "The LoRA file to write.", G, path="output")
    rank: int = option(16, "Rank", "Of the LoRA; what a lower rank loses is told.", G, ge=1)
    format: AdapterFormat | None = option(None, "Format", "Names of the weights in the file. null: KOHYA_LORA.", G)
    overwrite: bool = option(False, "Overwrite", "Replaces the written file if it exists.", G)


class RankInput(BaseConfig):
    """What the plot of effective ranks reads."""

    adapter: str = option("", "Adapter", "The adapter file.", G, path="file")
    other: str = option("", "Beside it", "Another adapter file to compare with. Empty: none.", G, path="file")


class TryInput(BaseConfig):
    """What is drawn with an adapter."""

    adapter: str = option("", "Adapter", "The adapter file. Empty: the base model alone.", G, path="file")
    prompt: str = option("", "Prompt", "What to draw.", G)
    negative: str = option("", "Negative prompt", "What guidance steers away from.", G)
    strengths: str = option(
        "0 1", "Strengths", "Of the adapter, with spaces between; 0 is the base model alone. One picture each.", G
    )
    seed: int = option(42, "Seed", "The noise that each picture starts from.", G)
    count: int = option(1, "Pictures", "With each strength; seeds count up.", G, ge=1)
    width: int | None = option(None, "Width", "null: as the model is usually drawn.", G, ge=8)
    height: int | None = option(None, "Height", "null: as the model is usually drawn.", G, ge=8)
    steps: int | None = option(None, "Steps", "Of the sampler. null: as usual.", G, ge=1)
    cfg: float | None = option(None, "Guidance", "null: as usual.", G, ge=0)


class CaptionInput(BaseConfig):
    """What captions are written for, and how."""

    folder: str = option("", "Folder", "Of the images. Captions that are there are left alone.", G, path="folder")
    model: str = option(
        KNOWN_MODELS[0], "Model", "Folder or hub name: BLIP, BLIP-2, Florence-2, a chat model that sees, a tagger.", G,
        choices=KNOWN_MODELS, path="model",
    )  # fmt: skip
    prompt: str = option(
        "", "Prompt",
        "What the model is asked. BLIP goes on from it, Florence-2 takes <CAPTION>, <DETAILED_CAPTION> or "
        "<MORE_DETAILED_CAPTION>, chat models follow it. Empty: as usual for the model.", G,
    )  # fmt: skip
    start: str = option("", "Begins with", "What each caption begins with, such as ohwx and a comma.", G)
    preview: int | None = option(
        3, "Preview", "Shows so many captions and writes nothing. null: all captions are written.", G, ge=1
    )
    subfolders: bool = option(False, "Subfolders", "Images in folders below get captions, too.", G)
    redo: bool = option(
        False, "Write anew", "Captions that a model wrote here and nobody changed since are written anew.", G
    )


class CoordInput(BaseConfig):
    """What the coordinate check compares."""

    methods: str = option(
        " ".join(USUAL), "Methods", f"Any of {', '.join(CHECKED)}, with spaces between. full takes the most memory.", G
    )
    ranks: str = option(_listed(RANKS), "Ranks", "Of methods with factors, with spaces between. Alpha goes along.", G)
    blocks: str = option(_listed(BLOCKS), "Block sizes", "Of OFT and DoRA-OFT, with spaces between.", G)
    base: str = option(
        "", "Another base model", "Folder, file or hub name of a model of another width. Empty: none.", G, path="model"
    )
    rate: float | None = option(None, "Learning rate", "null: the config's.", G, gt=0)
    steps: str = option(_listed(WARM), "Steps before", "Steps before the one that is measured, with spaces between.", G)
    batch: int = option(BATCH, "Batch", "Images of a batch.", G, ge=1)
    bound: float = option(
        BOUND, "Bound", "The largest change of a step over the smallest that still counts as the same.", G, ge=1
    )


@dataclass(frozen=True)
class ToolResult:
    """What a tool found.

    Attributes:
        text: for people.
        picture: PNG file, None if there is none.
        plot: whether the picture is one of lines and letters, which takes the colours of the window.
        values: path -> value for the run's config, if they can be applied.
    """

    text: str
    picture: Path | None = None
    plot: bool = True
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


def alpha_start(config: TrainConfig) -> tuple[TrainingMethod, AlphaInput]:
    """What of a config changes what the calculator starts from."""
    return config.training_method, alpha_input(config)


def rebase(config: TrainConfig, wish: AlphaInput) -> ToolResult:
    """Another alpha, and everything that has to change with it so that training stays what it was. Loads torch.

    Args:
        config: of the run: its adapter and the options of its optimizer count, if it is the wished one.
        wish: what is to be changed.

    Raises:
        UserError: the adapter has no alpha, or the optimizer knows no other alpha.
    """
    if wish.new_alpha == wish.lora_alpha:
        return ToolResult(tr("The new alpha is the one that it has now; nothing changes."))
    from modules.tool.rebase_config import rebase_config

    old = config.model_copy(deep=True)
    old.training_method = TrainingMethod.LORA
    old.lora_rank, old.lora_alpha, old.learning_rate = wish.lora_rank, wish.lora_alpha, wish.learning_rate
    if old.optimizer.optimizer != wish.optimizer:
        old.optimizer = type(old.optimizer)(optimizer=wish.optimizer)
    remarks: list[str] = []
    new = rebase_config(old, wish.new_alpha, remarks.append)
    changes = dict(_changes(old, new))
    lines = [f"{tr('option'):<34}{tr('now'):>14}{tr('then'):>14}"]
    lines += [f"{path:<34}{_number(before):>14}{_number(after):>14}" for path, (before, after) in changes.items()]
    strength = [alpha / wish.lora_rank for alpha in (wish.lora_alpha, wish.new_alpha)]
    told = tr(
        "alpha / rank goes from {before:.4g} to {after:.4g}.\nTraining stays the same with these values, but for "
        "rounding.",
        before=strength[0], after=strength[1],
    )  # fmt: skip
    lines += ["", told, *(f"note: {remark}" for remark in remarks)]
    applies = config.training_method == TrainingMethod.LORA and config.optimizer.optimizer == wish.optimizer
    values = {path: after for path, (_, after) in changes.items()} if applies else {}
    return ToolResult(_folded("\n".join(lines)), values={"lora_rank": wish.lora_rank, **values} if values else {})


def values_for(config: TrainConfig, wish: AlphaInput, found: ToolResult) -> dict[str, Any]:
    """The values that `rebase` has found, for the config as it is now.

    Raises:
        UserError: they would be others now.
    """
    if rebase(config, wish).values != found.values:
        raise UserError(tr("The config has changed since. Calculate again."))
    return found.values


def _changes(old: BaseConfig, new: BaseConfig, prefix: str = ""):
    for name in type(old).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, BaseConfig) and isinstance(after, BaseConfig):
            yield from _changes(before, after, f"{prefix}{name}.")
        elif before != after and not isinstance(after, (BaseConfig, list, dict)):
            yield f"{prefix}{name}", (before, after)


def _number(value: Any) -> str:
    return tr("default") if value is None else f"{value:.6g}" if isinstance(value, (int, float)) else str(value)


def inspect(wish: InspectInput, process: ToolProcess) -> ToolResult:
    """Kind, rank, alpha, norm and effective rank of each layer of an adapter file."""
    _need(wish.adapter, tr("an adapter file"))
    return _run(process, "convert_adapter.py", wish.adapter, "--info", *_given("--base", wish.base))


def convert(wish: ConvertInput, process: ToolProcess) -> ToolResult:
    """Writes an adapter in another form; nothing is replaced unless `overwrite` says so."""
    _need(wish.adapter, tr("an adapter file"))
    _need(wish.output, tr("the file to write"))
    arguments = [wish.adapter, wish.output]
    for flag, value in (
        ("--format", wish.format), ("--to", wish.kind), ("--rank", wish.rank), ("--alpha", wish.alpha),
        ("--dtype", wish.dtype), ("--base", wish.base),
    ):  # fmt: skip
        arguments += _given(flag, value)
    arguments += [flag for flag, on in (("--neumann", wish.neumann), ("--overwrite", wish.overwrite)) if on]
    return _run(process, "convert_adapter.py", *arguments, target=Path(wish.output))


def merge(wish: MergeInput, process: ToolProcess) -> ToolResult:
    """Writes a base model with an adapter in it; nothing is replaced unless `overwrite` says so."""
    _need(wish.adapter, tr("an adapter file"))
    _need(wish.base, tr("the base model"))
    _need(wish.output, tr("the folder to write"))
    arguments = [wish.adapter, wish.output, "--merge", "--base", wish.base, *_given("--dtype", wish.dtype)]
    arguments += [flag for flag, on in (("--neumann", wish.neumann), ("--overwrite", wish.overwrite)) if on]
    return _run(process, "convert_adapter.py", *arguments)


def extract(wish: ExtractInput, process: ToolProcess) -> ToolResult:
    """Writes the LoRA that lies between two models; nothing is replaced unless `overwrite` says so."""
    _need(wish.base, tr("the base model"))
    _need(wish.tuned, tr("the changed model"))
    _need(wish.output, tr("the file to write"))
    arguments = [wish.output, "--extract", wish.base, wish.tuned, "--rank", str(wish.rank)]
    arguments += [*_given("--format", wish.format), *(["--overwrite"] if wish.overwrite else [])]
    return _run(process, "convert_adapter.py", *arguments, target=Path(wish.output))


def effective_rank(wish: RankInput, picture: Path, process: ToolProcess) -> ToolResult:
    """A plot and a table of how many directions each layer of an adapter really uses.

    Args:
        wish: what is read.
        picture: PNG file that is written.
        process: unused, for the script.
    """
    _need(wish.adapter, tr("an adapter file"))
    files = [wish.adapter, *([wish.other] if wish.other.strip() else [])]
    found = _run(process, "effective_rank.py", *files, "--plot", str(picture))
    return ToolResult(_without_written(found.text, picture), picture)


def estimate_memory(config: TrainConfig, process: ToolProcess) -> ToolResult:
    """Where the memory of a run of this config will go. The base model must be there, or its description be known."""
    with _config_file(config) as path:
        return _run(process, "estimate_memory.py", str(path))


def coord_check(config: TrainConfig, wish: CoordInput, picture: Path, process: ToolProcess) -> ToolResult:
    """A plot and a table of how much one step of this config changes, over sizes and methods.

    Args:
        config: of the run.
        wish: what is compared.
        picture: PNG file that is written.
        process: unused, for the script.
    """
    arguments = ["--batch", str(wish.batch), "--bound", str(wish.bound), "--plot", str(picture)]
    for flag, value in (
        ("--methods", wish.methods), ("--ranks", wish.ranks), ("--blocks", wish.blocks), ("--steps", wish.steps),
    ):  # fmt: skip
        if value.strip():
            arguments += [flag, *value.split()]
    arguments += [*_given("--widths", wish.base), *_given("--rate", wish.rate)]
    with _config_file(config) as path:
        # 1: some spread is above the bound, which the text tells
        found = _run(process, "coord_check.py", str(path), *arguments, accepted=(0, 1))
    return ToolResult(_without_written(found.text, picture), picture)


def try_prompt(config: TrainConfig, wish: TryInput, process: ToolProcess) -> ToolResult:
    """Draws a prompt with the base model of a config and an adapter, at each strength, into the workspace's `images`.

    Args:
        config: of the run: its base model, number formats and device.
        wish: what is drawn.
        process: unused, for the script.

    Raises:
        UserError: something can't be read, or does not fit.
    """
    if not wish.prompt.strip():
        raise UserError(tr("Write a prompt first."))
    folder = Path(config.workspace_dir) / "images"
    # with = a text may begin with a dash
    arguments = [f"--prompt={wish.prompt}", "--seed", str(wish.seed), "--count", str(wish.count)]
    arguments += ["--output", str(folder), *([f"--negative={wish.negative}"] if wish.negative.strip() else [])]
    for flag in ("width", "height", "steps", "cfg"):
        arguments += _given(f"--{flag}", getattr(wish, flag))
    if wish.adapter.strip():
        arguments += ["--adapter", wish.adapter, "--strengths", *(wish.strengths.split() or ["0", "1"])]
    with _config_file(config) as path:
        # 3: memory was too little for some, which the text tells
        found = _run(process, "sample.py", "--config", str(path), *arguments, accepted=(0, 3))
    written = [line.removeprefix("written: ") for line in found.text.splitlines() if line.startswith("written: ")]
    return ToolResult(found.text, Path(written[-1]) if written else None, plot=False)


def write_captions(config: TrainConfig, wish: CaptionInput, process: ToolProcess) -> ToolResult:
    """Captions of a folder's images by a model, written beside them or, in a preview, only shown.

    Args:
        config: of the run: its device, hub cache, token and offline mode.
        wish: what is described, and how.
        process: unused, for the script.

    Raises:
        UserError: the folder or the model can't be used.
    """
    _need(wish.folder, tr("a folder of images"))
    _need(wish.model, tr("a model"))
    # with = a text may begin with a dash
    arguments = [wish.folder, "--model", wish.model, f"--start={wish.start}", f"--prompt={wish.prompt}"]
    arguments += _given("--preview", wish.preview)
    arguments += [flag for flag, on in (("--redo", wish.redo), ("--subfolders", wish.subfolders)) if on]
    with _config_file(config) as path:
        # 3: some images are broken, which the text tells
        found = _run(process, "caption.py", *arguments, "--config", str(path), accepted=(0, 3))
    lines = [textwrap.fill(line, NOTE_WIDTH, subsequent_indent="    ") for line in found.text.splitlines()]
    return ToolResult("\n".join(lines))


def open_board(board: TensorBoard, workspace: Path, process: ToolProcess) -> ToolResult:
    """Starts TensorBoard on a workspace, unless it runs there, and opens it in the browser."""
    address = board.open(workspace, process)
    text = tr(
        "TensorBoard shows {folder} at\n{address}\nuntil the window is closed.", folder=workspace, address=address
    )
    if not webbrowser.open(address):
        text += f"\n{tr('No browser could be opened: open this address in one.')}"
    return ToolResult(text)


@contextmanager
def _config_file(config: TrainConfig) -> Iterator[Path]:
    """The config as a script reads it, for as long as the script runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "present config.json"
        path.write_text(json.dumps(config.to_dict()), encoding="utf-8")
        yield path


def _without_written(text: str, picture: Path) -> str:
    """Without the line that names a file of the window's own."""
    return "\n".join(line for line in text.splitlines() if line != f"written: {picture}")


def _run(
    process: ToolProcess, script: str, *arguments: str, target: Path | None = None, accepted: Collection[int] = (0,)
) -> ToolResult:
    try:
        said = process.run_script(script, *arguments, target=target, accepted=accepted)
        return ToolResult(_folded(_in_form_words(said)))
    except ToolCancelled:
        raise
    except UserError as error:
        raise UserError(_in_form_words(str(error))) from error


def _in_form_words(text: str) -> str:
    for words, in_form in FORM_WORDS.items():
        text = text.replace(words, tr(in_form))
    return text


def _folded(text: str) -> str:
    """Notes in lines that fit beside a form; tables stay as they are."""
    notes = ("note: ", "warning: ")
    lines = [textwrap.fill(line, NOTE_WIDTH) if line.startswith(notes) else line for line in text.splitlines()]
    return "\n".join(lines)


def _need(text: str, what: str) -> None:
    if not text.strip():
        raise UserError(tr("Choose {what} first.", what=what))


def _given(flag: str, value: Any) -> list[str]:
    text = "" if value is None else str(value)
    return [flag, text] if text.strip() else []
