"""`scripts/coord_check.py` on the miniature: table, picture, numbers, exit status, errors; and nothing is written."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from modules.tool.coord_check.methods import BATCH, BLOCKS, BOUND, RANKS, WARM
from tests.conftest import save_pipeline
from tests.load_script import load_script

import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "coord_check.py"
QUICK = ("--ranks", "2", "8", "--methods", "lora", "--steps", "1", "--batch", "2")
ADAPTIVE = {"optimizer": "ADAMW_ADV", "scaled_optm": False}
SCALED = {"optimizer": "ADAMW_ADV", "scaled_optm": True}


@pytest.fixture(scope="module")
def script():
    return load_script("coord_check")


@pytest.fixture
def check(script, capsys):
    """check(arguments …) -> exit status, what was printed, what was told beside it."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status = script.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def everything(*folders: Path) -> dict[Path, str]:
    """Every file and folder below some, with the hash of what it holds."""
    found = [path for folder in folders for path in [folder, *folder.rglob("*")] if path.exists()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in found}


def test_nothing_but_the_named_files_is_written(make_run, check, monkeypatch):
    run = make_run(own_cache=True)
    run.output.parent.mkdir()
    run.output.write_bytes(b"precious")
    text = {"train": True, "gradient_checkpointing": False}
    config = run.write(clear_cache_before_training=True, text_encoder=text, samples=[{"prompt": "a red shape"}])
    monkeypatch.chdir(run.root)
    before = everything(run.root, run.base, run.concept)
    numbers, picture = run.root / "new" / "numbers.json", run.root / "new" / "picture.png"
    status, printed, told = check(
        config, "--ranks", 2, 8, "--blocks", 4, "--methods", "lora", "oft", "full", "--steps", 0, 2, "--batch", 2,
        "--bound", 1000, "--json", numbers, "--plot", picture,
    )  # fmt: skip
    assert status == 0, told
    after = everything(run.root, run.base, run.concept)
    assert after.keys() - before.keys() == {numbers.parent, numbers, picture}
    assert {path: after[path] for path in before} == before
    assert printed.count("written: ") == 2 and "no spread is above the bound of 1000" in printed

    found = json.loads(numbers.read_text(encoding="utf-8"))
    kinds = {(row["method"], row["size"], row["warm_steps"]): row for row in found["rows"]}
    sizes = [("lora", 4), ("lora", 2), ("lora", 8), ("oft", 4), ("full", None)]
    assert list(kinds) == [(*size, warm) for size in sizes for warm in (0, 2)]
    assert [row["reference"] for row in found["rows"]] == [True] * 2 + [False] * 8
    for row in found["rows"]:
        layers = sorted(row["layers"].values())
        assert row["min"] == layers[0] and row["max"] == layers[-1] and row["min"] <= row["median"] <= row["max"]
        assert 0 < row["prediction"] and any(name.startswith("text_encoder.") for name in row["layers"])
        assert f"{row['median']:.3g}" in printed and f"{row['prediction']:.3g}" in printed
    assert (
        found["script"] == "scripts/coord_check.py"
        and found["settings"]["bound"] == 1000
        and found["versions"]["torch"]
    )
    with Image.open(picture) as image:
        pixels = set(image.convert("RGB").get_flattened_data())
    # a colour for each method
    assert {(72, 120, 168), (106, 204, 100), (121, 121, 121)} <= pixels


def test_it_says_the_same_each_time(mini_run, check):
    config = mini_run.write()
    first, again = (check(config, *QUICK)[:2] for _ in range(2))
    assert first == again


def test_the_status_follows_the_bound(mini_run, check):
    config = mini_run.write(optimizer=ADAPTIVE, learning_rate=0.002)
    status, printed, _ = check(config, *QUICK, "--bound", 1)
    assert status == 1 and "2 of 2 spreads are above the bound of 1" in printed
    worst = [line.strip() for line in printed.splitlines() if " spread by " in line]
    assert len(worst) == 2 and all("over rank (2: " in line and ", 8: " in line for line in worst)
    assert float(worst[0].split(" spread by ")[1].split()[0]) >= float(worst[1].split(" spread by ")[1].split()[0])


def test_scaled_steps_pass_where_unscaled_ones_do_not(mini_run, check):
    arguments = ("--ranks", 1, 16, "--methods", "lora", "--steps", 1, "--batch", 2, "--bound", 2)
    config = mini_run.write(optimizer=SCALED, learning_rate=0.01)
    assert check(config, *arguments)[0] == 0
    unscaled = ("--override", "optimizer.scaled_optm=false", "--rate", 0.002)
    status, printed, _ = check(config, *arguments, *unscaled)
    assert status == 1 and "ADAMW_ADV, rate 0.002" in printed


def test_widths_are_compared(mini_run, check, tmp_path):
    wide = save_pipeline(tmp_path / "wide", (32, 64)).rename(tmp_path / "wide one")
    config, numbers, picture = mini_run.write(), tmp_path / "numbers.json", tmp_path / "picture.png"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(mini_run.options(base_model_name=str(wide), learning_rate=0.02)), encoding="utf-8")
    medians = {}
    for place in (wide, other):
        status, printed, _ = check(
            config, "--methods", "full", "--steps", 1, "--batch", 2, "--widths", place, "--bound", 1000, "--json",
            numbers, "--plot", picture,
        )  # fmt: skip
        assert status == 0
        rows = json.loads(numbers.read_text(encoding="utf-8"))["rows"]
        assert [(row["base"], row["method"]) for row in rows] == [
            ("model", "lora"), ("model", "full"), ("wide one", "lora"), ("wide one", "full"),
        ]  # fmt: skip
        assert rows[2]["width"] == 2 * rows[0]["width"]
        assert "spread over width  LoRA rank 4, step 2" in printed and "spread over width  full, step 2" in printed
        medians[place] = rows[2]["median"]
        with Image.open(picture) as image:
            assert image.size[1] > 700, "a row of panels for each base, and one over widths"
    # a config of its own has a rate of its own
    assert medians[other] > 1.3 * medians[wide]


def test_earlier_results_stand_in_the_picture(mini_run, check, tmp_path):
    config, numbers = mini_run.write(), tmp_path / "numbers.json"
    check(config, *QUICK, "--json", numbers, "--plot", tmp_path / "one.png")
    check(config, *QUICK, "--beside", numbers, "--plot", tmp_path / "two.png")
    heights = [Image.open(tmp_path / name).size[1] for name in ("one.png", "two.png")]
    assert heights[1] > 1.7 * heights[0]
    numbers.write_text('{"rows": []}', encoding="utf-8")
    status, printed, told = check(config, *QUICK, "--beside", numbers, "--plot", tmp_path / "two.png")
    assert status == 2 and not printed and "is no result of scripts/coord_check.py" in told


@pytest.mark.parametrize(
    ("changes", "arguments", "told"),
    [
        ({"training_method": "EMBEDDING"}, (), "training_method: EMBEDDING has neither adapters"),
        ({}, ("--methods", "full"), "No two variants differ"),
        ({"base_model_name": "models/none"}, QUICK, "models/none"),
        ({"unet": {"train": False}}, QUICK, "unet.train: nothing is trained"),
        ({"layer_filter": "nowhere"}, QUICK, "layer_filter: 'nowhere' is in no layer name"),
        ({"optimizer": {"optimizer": "LORA_RITE"}}, ("--methods", "full", "lora"), "full: optimizer.optimizer"),
        ({}, ("--widths", "none.json"), "none.json"),
        ({}, (*QUICK, "--widths", "config.json"), "--widths: expected a base model of its own for each"),
        ({}, (*QUICK, "--json", "config.json/x.json"), "--json: "),
        ({}, (*QUICK, "--override", "no_such=1"), "no_such"),
    ],
)  # fmt: skip
def test_errors_are_told_to_people(mini_run, check, monkeypatch, changes, arguments, told):
    config = mini_run.write(**changes)
    monkeypatch.chdir(mini_run.root)
    before = everything(mini_run.root)
    status, printed, found = check(config, *arguments)
    lines = [line for line in found.splitlines() if line.startswith("error: ")]
    assert status == 2 and not printed and len(lines) == 1 and told in lines[0], found
    assert "Traceback" not in found and everything(mini_run.root) == before


def test_a_missing_config(check, tmp_path):
    status, printed, told = check(tmp_path / "none.json")
    assert status == 2 and not printed and told.startswith("error: ") and "none.json" in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("--ranks", "0"), ("--blocks", "1"), ("--steps", "-1"), ("--steps", "1.5"), ("--rate", "0"), ("--rate", "nan"),
        ("--bound", "0.5"), ("--batch", "0"), ("--methods", "lara"), ("--beside", "a.json"),
    ],
)  # fmt: skip
def test_a_wrong_command_line(script, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        script.main(["config.json", *arguments])
    assert stopped.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_the_defaults_are_those_of_the_package(script):
    args = script.parse(["config.json"])
    assert (args.ranks, args.blocks, args.steps, args.batch, args.bound) == (RANKS, BLOCKS, WARM, BATCH, BOUND)


def test_what_the_optimizer_cannot_train_is_left_out_unless_it_is_asked_for(mini_run, check):
    """Stiefel-LoRA wants orthonormal start values, which the config does not give to factors."""
    config = mini_run.write(peft_type="OFT_2", oft_block_size=4, optimizer={"optimizer": "STIEFEL_LORA"})
    quick = ("--ranks", 2, 4, "--blocks", 2, "--steps", 1, "--batch", 2)
    _, printed, told = check(config, *quick)
    assert [line.split(":")[:2] for line in told.splitlines() if "left out" in line] == [
        ["note", " LoRA is left out"], ["note", " DoRA is left out"],
    ]  # fmt: skip
    assert "OFT block 4 *" in printed and "DoRA-OFT block 2" in printed and "rank" not in printed
    status, printed, told = check(config, *quick, "--methods", "lora")
    assert status == 2 and not printed and "LoRA rank 2: lora_init: found KAIMING" in told


def test_a_slow_import_does_not_keep_a_wrong_command_line_waiting(tmp_path):
    command = [sys.executable, "-X", "importtime", str(SCRIPT), "config.json", "--ranks", "none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 2 and "--ranks: found none, expected a whole number of at least 1" in done.stderr
    assert " diffusers" not in done.stderr
