"""What the tools find: the alpha calculator, what they pass to the scripts, and what the scripts say."""

import json
from pathlib import Path

from modules.tool.coord_check.methods import USUAL
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.UserError import UserError
from modules.viewModel.ToolProcess import ToolProcess
from modules.viewModel.tools.adapter_choices import AdapterFormat, AdapterShape, WrittenType
from modules.viewModel.tools.alpha import AlphaInput, alpha_input, rebase, values_for
from modules.viewModel.tools.captions import CaptionInput, write_captions
from modules.viewModel.tools.converter import ConvertInput, convert
from modules.viewModel.tools.coord_check import CoordInput, coord_check
from modules.viewModel.tools.inspector import InspectInput, inspect
from modules.viewModel.tools.masks import MaskInput, write_masks
from tests.load_script import load_script

import pytest


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, ...]]:
    """The command lines of scripts, in place of running them."""
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(ToolProcess, "run_script", lambda _, *line, **__: found.append(line) or "done")
    return found


@pytest.fixture(scope="module")
def script():
    """scripts/convert_adapter.py as a module."""
    return load_script("convert_adapter")


def test_a_quarter_of_alpha_needs_twice_the_rate_of_adam_and_four_times_that_of_sgd():
    for optimizer, factor in ((Optimizer.ADAMW, 2), (Optimizer.SGD, 4)):
        config = TrainConfig(training_method=TrainingMethod.LORA, optimizer={"optimizer": str(optimizer)})
        wish = AlphaInput(lora_rank=16, lora_alpha=16.0, learning_rate=1e-4, optimizer=optimizer, new_alpha=4.0)
        values = rebase(config, wish).values
        assert values["learning_rate"] == pytest.approx(factor * 1e-4)
        assert values["lora_alpha"] == 4 and values["lora_init_scale"] == pytest.approx(2 * config.lora_init_scale)


def test_the_same_alpha_changes_nothing():
    config = TrainConfig(lora_rank=8, lora_alpha=8.0)
    assert alpha_input(config).new_alpha == 8 and not rebase(config, alpha_input(config)).values


def test_values_for_another_config_are_not_handed_out():
    config = TrainConfig(training_method=TrainingMethod.LORA)
    wish = alpha_input(config).model_copy(update={"new_alpha": 4 * config.lora_alpha})
    found = rebase(config, wish)
    config.epochs += 1
    assert values_for(config, wish, found) == found.values
    config.lora_init_scale = 3.0
    with pytest.raises(UserError, match="has changed"):
        values_for(config, wish, found)


def test_no_file_is_asked_for():
    for tool, wish in ((inspect, InspectInput()), (convert, ConvertInput()), (convert, ConvertInput(adapter="a"))):
        with pytest.raises(UserError, match="Choose (an adapter file|the file to write) first"):
            tool(wish, ToolProcess())


def test_the_converter_offers_what_its_script_does(script):
    assert list(AdapterFormat) == script.FORMATS and list(WrittenType) == script.DTYPES
    for shape in AdapterShape:
        assert script.parse(["in", "out", "--to", shape]).to == shape


def test_every_field_of_the_converter_reaches_the_script(calls, script):
    convert(ConvertInput(adapter="in", output="out"), ToolProcess())
    wish = ConvertInput(
        adapter="in", output="out", format="COMFY_LORA", kind="lora", rank=8, alpha=1.23456789, dtype="FLOAT_16",
        base="folder", neumann=True, overwrite=True,
    )  # fmt: skip
    assert not [name for name in ConvertInput.model_fields if getattr(wish, name) == getattr(ConvertInput(), name)]
    convert(wish, ToolProcess())
    plain, full = (vars(script.parse(list(line[1:]))) for line in calls)
    assert plain == vars(script.parse(["in", "out"]))
    same = {name for name in full if full[name] == plain[name]}
    assert same == {"paths", "info", "merge", "extract"}, "those are other tools"
    assert full["alpha"] == 1.23456789 and str(full["format"]) == "COMFY_LORA" and full["to"] == "lora"


def test_every_field_of_the_captions_reaches_their_script(calls):
    script = load_script("caption")
    wish = CaptionInput(
        folder="photos",
        model="some/model",
        prompt="-what is it?",
        start="-ohwx, ",
        preview=None,
        subfolders=True,
        redo=True,
    )
    assert not [name for name in CaptionInput.model_fields if getattr(wish, name) == getattr(CaptionInput(), name)]
    write_captions(TrainConfig(), wish, ToolProcess())
    write_captions(TrainConfig(), CaptionInput(folder="photos"), ToolProcess())
    full, usual = (script.parse(list(line[1:])) for line in calls)
    assert (full.folder, full.model, full.prompt, full.start) == (Path("photos"), wish.model, wish.prompt, wish.start)
    assert full.redo and full.subfolders and full.preview is None and full.config.name == "present config.json"
    assert usual.preview == 3 and not usual.redo and not usual.subfolders and not usual.prompt and not usual.start
    with pytest.raises(UserError, match="Choose a folder of images first"):
        write_captions(TrainConfig(), CaptionInput(), ToolProcess())


def test_every_field_of_the_masks_reaches_their_script(calls):
    script, picture = load_script("mask"), Path("picture.png")
    wish = MaskInput(
        folder="photos", model="some/model", prompt="-a person", preview=None, threshold=0.25, grow=-7, blur=2.5,
        holes=3.0, soft=True, invert=True, subfolders=True, overwrite=True,
    )  # fmt: skip
    assert not [name for name in MaskInput.model_fields if getattr(wish, name) == getattr(MaskInput(), name)]
    write_masks(TrainConfig(), wish, picture, ToolProcess())
    write_masks(TrainConfig(), MaskInput(folder="photos"), picture, ToolProcess())
    full, usual = (vars(script.parse(list(line[1:]))) for line in calls)
    assert full["folder"] == Path("photos") and full["preview"] is full["limit"] is None
    names = ("model", "prompt", "threshold", "grow", "blur", "holes", "soft", "invert", "subfolders", "overwrite")
    assert {name: full[name] for name in names} == {name: getattr(wish, name) for name in names}
    plain = vars(script.parse(["photos", "--model", usual["model"]]))
    other = {name for name in plain if plain[name] != usual[name]}
    assert other == {"preview", "limit", "config"} and (usual["preview"], usual["limit"]) == (picture, 4)
    with pytest.raises(UserError, match="Choose a folder of pictures first"):
        write_masks(TrainConfig(), MaskInput(), picture, ToolProcess())


def test_what_the_script_of_masks_says_is_said_in_words_of_the_form(monkeypatch):
    said = "note: masked_training is off. Switch it on, or the masks are not used.\nwritten: picture.png"
    monkeypatch.setattr(ToolProcess, "run_script", lambda *_, **__: said)
    found = write_masks(TrainConfig(), MaskInput(folder="photos"), Path("picture.png"), ToolProcess())
    assert " ".join(found.text.split()) == "note: Masked training is off. Switch it on, or the masks are not used."
    assert max(map(len, found.text.splitlines())) < 40
    assert found.picture == Path("picture.png") and not found.plot
    monkeypatch.setattr(ToolProcess, "run_script", lambda *_, **__: "There are no pictures in photos.")
    assert write_masks(TrainConfig(), MaskInput(folder="photos"), Path("x.png"), ToolProcess()).picture is None

    def fail(*_: object, **__: object) -> str:
        raise UserError("--prompt: this model finds labels.")

    monkeypatch.setattr(ToolProcess, "run_script", fail)
    with pytest.raises(UserError, match=r"^What to find: this model finds labels"):
        write_masks(TrainConfig(), MaskInput(folder="photos"), Path("x.png"), ToolProcess())


def test_the_coordinate_check_of_an_untouched_form_is_that_of_its_script(calls):
    check, picture = load_script("coord_check"), Path("picture.png")
    coord_check(TrainConfig(), CoordInput(), picture, ToolProcess())
    found, usual = vars(check.parse(list(calls[0][1:]))), vars(check.parse(["config.json"]))
    assert found.pop("methods") == list(USUAL) and usual.pop("methods") is None
    assert found.pop("plot") == picture and usual.pop("plot") is None
    assert found.pop("config").name == "present config.json" and usual.pop("config")
    lists = {"ranks", "blocks", "steps"}
    assert {name: list(value) if name in lists else value for name, value in found.items()} == {
        name: list(value) if name in lists else value for name, value in usual.items()
    }


def test_every_field_of_the_coordinate_check_reaches_its_script(calls):
    check = load_script("coord_check")
    wish = CoordInput(
        methods="full  lora", ranks="2 8", blocks="16", base="other model", rate=0.25, steps="0", batch=3, bound=1.25
    )
    assert not [name for name in CoordInput.model_fields if getattr(wish, name) == getattr(CoordInput(), name)]
    coord_check(TrainConfig(), wish, Path("picture.png"), ToolProcess())
    coord_check(TrainConfig(), CoordInput(methods=" ", ranks="", blocks="", steps=""), Path("x.png"), ToolProcess())
    full, empty = (check.parse(list(line[1:])) for line in calls)
    assert (full.methods, full.ranks, full.blocks, full.steps) == (["full", "lora"], [2, 8], [16], [0])
    assert (full.widths, full.rate, full.batch, full.bound) == (["other model"], 0.25, 3, 1.25)
    assert empty.methods is None and empty.ranks == check.RANKS, "empty fields mean the script's own"


def test_the_coordinate_check_reads_the_config_of_now_and_may_find_a_spread(monkeypatch):
    seen = {}

    def run(_, name: str, config: str, *line: str, accepted=(0,), **__) -> str:
        seen.update(json.loads(Path(config).read_text(encoding="utf-8")), script=name, accepted=accepted, path=config)
        return f"a table\nwritten: {Path('picture.png')}\nnote: give --ranks"

    monkeypatch.setattr(ToolProcess, "run_script", run)
    found = coord_check(TrainConfig(lora_rank=7), CoordInput(), Path("picture.png"), ToolProcess())
    assert (found.text, found.picture) == ("a table\nnote: give Ranks", Path("picture.png"))
    assert (seen["script"], seen["lora_rank"]) == ("coord_check.py", 7)
    assert set(seen["accepted"]) == {0, 1}, "a spread above the bound is a result, not an error"
    assert not Path(seen["path"]).exists()


def test_notes_are_folded_and_tables_are_not(monkeypatch):
    row, note = "layer " * 30, "note: " + "many words " * 30
    monkeypatch.setattr(ToolProcess, "run_script", lambda *_, **__: f"{row}\n{note}")
    first, *rest = inspect(InspectInput(adapter="a"), ToolProcess()).text.splitlines()
    assert first == row and " ".join(rest).split() == note.split() and max(map(len, rest)) <= 80


def test_what_the_script_calls_by_its_options_is_said_in_words_of_the_form(monkeypatch):
    def fail(*_: object, **__: object) -> str:
        raise UserError("a: nothing to do. Give --format, --rank, --alpha, --to or --dtype, or give --overwrite.")

    monkeypatch.setattr(ToolProcess, "run_script", fail)
    with pytest.raises(UserError) as caught:
        convert(ConvertInput(adapter="a", output="b"), ToolProcess())
    words = "a: nothing to do. Give Format, Rank, Alpha, Kind or Number format, or switch on Overwrite."
    assert str(caught.value) == words
