"""How tools run their scripts: what is asked for, passed on, and told in the words of a form."""

import json
import tempfile
import textwrap
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from modules.util.config.TrainConfig import TrainConfig
from modules.util.texts import later, tr
from modules.util.UserError import UserError
from modules.viewModel.ToolProcess import ToolCancelled, ToolProcess
from modules.viewModel.tools.ToolResult import ToolResult

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


def run_script(
    process: ToolProcess,
    script: str,
    *arguments: str,
    target: Path | None = None,
    accepted: Collection[int] = (0,),
    words: Mapping[str, str] | None = None,
    picture: Path | None = None,
) -> ToolResult:
    """What a script prints, in the words of the form.

    Args:
        process: unused, for the script.
        script: its file in scripts/.
        arguments: as on the command line.
        target, accepted: see `ToolProcess.run_script`.
        words: what the script says -> what the form calls it, before those of all forms.
        picture: file that the script may write for the window, which is not told but shown.

    Raises:
        UserError: with what the script says is wrong.
        ToolCancelled: it was ended.
    """
    try:
        said = process.run_script(script, *arguments, target=target, accepted=accepted)
        lines, written = folded(_in_form_words(said, words)).splitlines(), f"written: {picture}"
        text = "\n".join(line for line in lines if line != written)
        return ToolResult(text, picture if written in lines else None)
    except ToolCancelled:
        raise
    except UserError as error:
        raise UserError(_in_form_words(str(error), words)) from error


def run_on_folder(
    process: ToolProcess, script: str, config: TrainConfig, wish: Any, what: str, *arguments: str,
    words: Mapping[str, str] | None = None, picture: Path | None = None, width: int = NOTE_WIDTH,
) -> ToolResult:  # fmt: skip
    """What a script says that writes a file of a model beside each picture of a folder.

    Args:
        process, script, words, picture: see `run_script`; it raises the same.
        config: of the run.
        wish: of the form, with `folder`, `model` and `prompt`.
        what: is to be chosen first, for people.
        arguments: others than these.
        width: of the text, in letters.
    """
    need(wish.folder, what)
    need(wish.model, tr("a model"))
    # with = a text may begin with a dash
    line = [wish.folder, "--model", wish.model, f"--prompt={wish.prompt}", *arguments]
    with config_file(config) as path:
        # 3: some pictures are left out, which the text tells
        line += ["--config", str(path)]
        found = run_script(process, script, *line, accepted=(0, 3), words=words, picture=picture)
    lines = [textwrap.fill(line, width, subsequent_indent="    ") for line in found.text.splitlines()]
    return replace(found, text="\n".join(lines), plot=False)


def need(text: str, what: str) -> None:
    """Raises UserError if nothing stands in a field that has to be filled in."""
    if not text.strip():
        raise UserError(tr("Choose {what} first.", what=what))


def given(flag: str, value: Any) -> list[str]:
    """A flag and its value, nothing where the field is empty."""
    text = "" if value is None else str(value)
    return [flag, text] if text.strip() else []


def switched_on(wish: Any, *names: str) -> list[str]:
    """The flags of those fields that are on."""
    return [f"--{name}" for name in names if getattr(wish, name)]


@contextmanager
def config_file(config: TrainConfig) -> Iterator[Path]:
    """The config as a script reads it, for as long as the script runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "present config.json"
        path.write_text(json.dumps(config.to_dict()), encoding="utf-8")
        yield path


def folded(text: str) -> str:
    """Notes in lines that fit beside a form; tables stay as they are."""
    notes = ("note: ", "warning: ")
    lines = [textwrap.fill(line, NOTE_WIDTH) if line.startswith(notes) else line for line in text.splitlines()]
    return "\n".join(lines)


def _in_form_words(text: str, own: Mapping[str, str] | None) -> str:
    for words, in_form in (*(own or {}).items(), *FORM_WORDS.items()):
        text = text.replace(words, tr(in_form))
    return text
