"""What is read from ComfyUI's window: where it differs from our files, it is told."""

import json
from pathlib import Path

from benchmarks.comfyui.check import TOO_MANY, faults, node_faults
from benchmarks.comfyui.prepare import LOST_LAYER
from scripts.check_in_comfyui import main

import pytest

MEASURED = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "comfyui.json"
NODE = {
    "type": "LoraLoaderModelOnly",
    "widgets": [["lora_name", "a.safetensors"], ["strength_model", 1]],
    "inputs": [["model", True], ["lora_name", False]],
    "outputs": ["MODEL"],
}


def test_a_node_of_other_fields_links_or_outputs_is_told():
    assert not list(node_faults(NODE))
    assert "its fields" in next(node_faults(NODE | {"widgets": NODE["widgets"][::-1]}))
    assert "linked are" in next(node_faults(NODE | {"inputs": [["model", False]]}))
    assert "it gives" in next(node_faults(NODE | {"outputs": ["MODEL", "CLIP"]}))


def test_what_was_measured_has_no_fault_and_each_fault_would_be_told():
    found = json.loads(MEASURED.read_text(encoding="utf-8"))
    assert not faults(found)
    row = found["adapters"][0]
    for change in (
        {"ran": False}, {"lost layers": ["lora_unet_x"]}, {"changes the picture": False}, {"unknown nodes": ["X"]},
        {"wrong": ["KSampler: its fields are other ones"]}, {"name": TOO_MANY},
    ):  # fmt: skip
        (line,) = faults({**found, "adapters": [row | change]})
        assert line.startswith(change.get("name", row["name"]))
    assert found["adapters"][-1]["lost layers"] == [LOST_LAYER]


def test_a_folder_that_is_no_comfyui_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--python", "python"])
    assert "is no checkout of ComfyUI" in capsys.readouterr().err
