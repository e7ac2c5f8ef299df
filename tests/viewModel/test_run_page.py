"""A run as one HTML file."""

import json
from html.parser import HTMLParser
from pathlib import Path

from modules.util.UserError import UserError
from modules.viewModel.run_list import WAITING, ListedRun, find_runs
from modules.viewModel.run_page import listed_page, page_place, run_page, write_page
from modules.viewModel.run_summary import Summaries
from tests.load_script import load_script
from tests.viewModel.written_runs import write_record

import pytest
from PIL import Image

EMPTY = {"meta", "img", "line", "polyline"}


class Balance(HTMLParser):
    """Open tags, which must be closed in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.images = [], 0

    def handle_starttag(self, tag, attrs):
        self.images += tag == "img"
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    handle_startendtag = handle_starttag


def write_run(folder: Path, pictures: int, **options) -> None:
    events = [{"kind": "status", "text": "Loading <a model>"}]
    for step in range(1, 201):
        events.append(
            {"kind": "step", "step": step, "total": 200, "epoch": 0, "loss": 1 / step, "learning_rates": {"unet": 1e-3}}
        )
    for step in range(pictures):
        path = folder / "samples" / "0 - a cat & a dog" / f"step-{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (500, 300), (step, 90, 90)).save(path)
        events.append({"kind": "sample", "step": step, "path": str(path)})
    events.append({"kind": "saved", "path": "/home/somebody/models/my lora.safetensors"})
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(options), encoding="utf-8")


def test_a_page_has_all_of_a_run(tmp_path):
    write_run(tmp_path, 20, lora_rank=77, workspace_dir="/home/somebody/secret place", base_model_name="a/base")
    page, found = run_page(tmp_path), Balance()
    found.feed(page)
    # html and pre may stay open to the end of a page
    assert found.open == []
    assert found.images == 6 and page.count("<polyline") == 3
    assert "0 - a cat &amp; a dog" in page and "Loading &lt;a model&gt;" in page
    assert "<h1>my lora.safetensors</h1>" in page and "lora_rank</td><td>77" in page
    before = page.split("<h2>Messages")[0]
    assert "secret place" in before and "/home/somebody" not in before


def test_a_run_without_a_config_or_pictures_has_a_page(tmp_path):
    write_run(tmp_path, 2)
    (tmp_path / "config.json").unlink()
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    page = run_page(tmp_path)
    assert "<img" not in page and "What differs" not in page and "<polyline" in page


def test_the_command_line(tmp_path, capsys):
    script, folder = load_script("run_page"), tmp_path / "run"
    folder.mkdir()
    write_run(folder, 1)
    assert script.main([str(folder)]) == 0 and (folder / "page.html").is_file()
    assert script.main([str(folder)]) == 1 and "--overwrite" in capsys.readouterr().err
    assert script.main([str(folder), "--output", str(tmp_path / "there" / "p.html")]) == 0
    with pytest.raises(UserError, match="no records of a run"):
        run_page(tmp_path)


def test_a_run_of_the_command_line_has_the_same_page(tmp_path):
    workspace = tmp_path / "first"
    record = write_record(workspace, pictures=(0, 10, 20), lora_rank=77)
    (workspace / "run.json").write_text(json.dumps({"steps": 30, "device": "a GPU"}), encoding="utf-8")
    for folder in (workspace, record):
        page, found = run_page(folder), Balance()
        found.feed(page)
        assert found.open == [] and found.images == 6 and page.count("<polyline") == 4
        assert "<h1>first</h1><p>Finished.</p>" in page and "lora_rank</td><td>77" in page
        assert "a GPU" in page and "<h3>1 - a blue shape</h3>" in page and str(tmp_path) not in page
    # what it took is told of the last run of a workspace alone
    write_record(workspace, "2027-01-02_03-04-05", steps=7, at=2e9, state="failed")
    assert "<td>7</td>" in run_page(workspace) and "a GPU" not in run_page(workspace)
    assert "<td>30</td>" in run_page(record)
    with pytest.raises(UserError, match="no records of a run, expected events.jsonl, or the workspace of a run"):
        run_page(workspace / "record" / "none")


def test_a_run_of_the_list_is_written_into_its_workspace(tmp_path):
    write_record(tmp_path / "first", output_model_destination="models/first v1.5.safetensors")
    (run,) = find_runs(tmp_path / "ui_runs", tmp_path, [tmp_path], Summaries())
    target = page_place(run)
    assert target == tmp_path / "first" / "first v1.5 run.html"
    write_page(run, target, False)
    assert "Finished." in target.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="exists by now"):
        write_page(run, target, False)
    write_page(run, target, True)
    waits = ListedRun("a", "a", WAITING)
    assert page_place(waits) is None
    with pytest.raises(UserError, match="nothing of this run to show, as it waits in the queue"):
        listed_page(waits)
