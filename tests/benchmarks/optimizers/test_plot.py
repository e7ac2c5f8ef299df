"""The picture of the optimizer benchmark."""

import json

from scripts.plot_optimizers import main

import pytest
from PIL import Image


def result(rows: int) -> str:
    row = {
        "name": "ADAMW_ADV plain",
        "ratios": {
            "adv_optm/ours": {"median": 3.5},
            "ours/torch_fused": {"median": 1.1},
            "state_bytes": 1.0,
        },
    }
    alone = {"name": "ADAMW_ADV fp16", "ratios": {**row["ratios"], "adv_optm/ours": None, "state_bytes": None}}
    goals = {"cpu": 3.0, "cuda": 20.0, "plain": 1.3, "bytes": 1.0}
    return json.dumps({"device": "cpu", "goals": goals, "cases": [row, alone][:rows]})


@pytest.mark.filterwarnings("error")
def test_each_case_has_its_row(tmp_path, capsys):
    sizes = []
    for rows in (1, 2):
        source, picture = tmp_path / "result.json", tmp_path / "new folder" / f"{rows}.png"
        source.write_text(result(rows), encoding="utf-8")
        assert main([str(source), "--all", "--output", str(picture)]) == 0
        assert f"written: {picture}" in capsys.readouterr().out
        with Image.open(picture) as image:
            sizes.append(image.size)
            blue = sum(pixel == (72, 120, 168) for pixel in image.convert("RGB").get_flattened_data())
            assert blue > 1000 * rows
    assert sizes[1][1] > sizes[0][1] and sizes[1][0] == sizes[0][0]


def test_features_are_left_out_unless_asked_for(tmp_path):
    source, heights = tmp_path / "result.json", []
    source.write_text(result(2), encoding="utf-8")
    for more in ([], ["--all"]):
        assert main([str(source), *more, "--output", str(tmp_path / "x.png")]) == 0
        with Image.open(tmp_path / "x.png") as image:
            heights.append(image.height)
    assert heights[0] < heights[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "Expecting"), ("{}", "is missing; expected what benchmark_optimizers.py writes"), (result(0), "no cases")],
)
def test_wrong_files_are_one_line(content, message, tmp_path, capsys):
    source = tmp_path / "result.json"
    source.write_text(content, encoding="utf-8")
    assert main([str(source), "--output", str(tmp_path / "x.png")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
