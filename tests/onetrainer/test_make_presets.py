"""The script that makes presets from those of a checkout, on a checkout that holds nothing else."""

import json
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from scaled_onetrainer.hooks.config_fields import unguarded

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scaled-onetrainer" / "checks" / "make_presets.py"
LORA = {
    "training_method": "LORA",
    "model_type": "SOME",
    "batch_size": 3,
    "lora_alpha": 1.0,
    "learning_rate_scheduler": "COSINE",
    "transformer": {"train": True, "weight_dtype": "INT_8"},
}
FULL = {
    "training_method": "FINE_TUNE",
    "transformer": {"train": True, "weight_dtype": "BFLOAT_16"},
    "optimizer": {"optimizer": "THEIRS"},
    "optimizer_defaults": {"THEIRS": {"optimizer": "THEIRS", "beta1": None}},
}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = spec_from_file_location("make_presets", SCRIPT)
    module = module_from_spec(spec)
    # a dataclass looks for its module
    monkeypatch.setitem(sys.modules, "make_presets", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OUTPUT", tmp_path / "output")
    return module


@pytest.fixture
def made(script: ModuleType, tmp_path: Path) -> Callable[[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Our presets by path, made from some of OneTrainer's by path."""

    def make(presets: dict[str, Any]) -> dict[str, dict[str, Any]]:
        checkout = tmp_path / "checkout"
        config = checkout / "modules" / "util" / "config" / "TrainConfig.py"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text("config_version=7\n")
        for path, content in presets.items():
            file = checkout / "training_presets" / f"{path}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(content))
        count = script.write(checkout)
        found = sorted(script.OUTPUT.rglob("*.json"))
        assert len(found) == count
        return {f"{path.parent.name}/{path.stem}": json.loads(path.read_text()) for path in found}

    return make


def test_lora_is_there_for_each_memory_and_the_rest_once(made):
    found = made({"Z-Image/#z-image LoRA 8GB": {**LORA, "batch_size": 1}, "Z-Image/#z-image LoRA 16GB": LORA})
    assert set(found) == {
        f"Z-Image/#scaled {name}" for name in ("LoRA 8GB", "LoRA 16GB", "DoRA", "OFT", "Stiefel LoRA", "RITE LoRA")
    }
    assert found["Z-Image/#scaled LoRA 8GB"]["batch_size"] == 1
    assert found["Z-Image/#scaled OFT"]["batch_size"] == 3
    assert found["Z-Image/#scaled OFT"]["//made_from"] == "Z-Image/#z-image LoRA 16GB.json"


def test_everything_else_stays(made, script):
    preset = made({"Z-Image/#z-image LoRA": LORA})["Z-Image/#scaled LoRA"]
    assert preset["__version"] == 7
    real = unguarded(preset)
    assert real["learning_rate_scheduler"] == "COSINE"
    for key, value in LORA.items():
        assert real[key] == value or key == "lora_alpha"
    assert real.keys() - LORA.keys() <= script.ALLOWED


def test_state_of_full_fine_tuning_depends_on_memory_and_weights(made):
    found = made({"Chroma/#chroma Finetune 8GB": FULL, "Chroma/#chroma Finetune 24GB": FULL, "SDXL/#sdxl 1.0": FULL})
    state = {name: preset["optimizer"].get("state_precision") for name, preset in found.items()}
    assert state == {
        "Chroma/#scaled Finetune 8GB": "factored",
        "Chroma/#scaled Finetune 24GB": "factored",
        "Chroma/#scaled Finetune": "int8_sr",
        "SDXL/#scaled Finetune": "bf16_sr",
    }
    assert {name for name, preset in found.items() if "centered_wd" in preset["optimizer"]} == {
        "Chroma/#scaled Finetune",
        "SDXL/#scaled Finetune",
    }
    # what OneTrainer's preset says of its own optimizer is kept for those who go back to it
    assert found["SDXL/#scaled Finetune"]["optimizer_defaults"].keys() == {"THEIRS", "SCALED_ADAMW_ADV"}
    plain = made({"SDXL/#sdxl 1.0": {"training_method": "FINE_TUNE"}})["SDXL/#scaled Finetune"]["optimizer"]
    assert "state_precision" not in plain and "fused_back_pass" not in plain


def test_presets_that_are_no_longer_made_are_removed(made, script):
    stale = script.OUTPUT / "SDXL" / "#scaled Old.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    assert "SDXL/#scaled Old" not in made({"SDXL/#sdxl 1.0": FULL})


def test_embeddings_are_left_out_and_new_families_are_told_of(made):
    assert made({"SDXL/#sdxl 1.0 embedding": {"training_method": "EMBEDDING"}}) == {}
    with pytest.raises(ValueError, match="Nova: a folder"):
        made({"Nova/#nova LoRA": LORA})


def test_the_table_names_every_preset(made, script, tmp_path, capsys):
    found = made({"Z-Image/#z-image LoRA 8GB": LORA, "SDXL/#sdxl 1.0": FULL})
    script.print_table(tmp_path / "checkout")
    printed = capsys.readouterr().out
    assert all(f"`{name.partition('/')[2]}`" in printed for name in found)
    assert '`lora_init` "ORTHONORMAL"' in printed and printed.count("| family |") == 1
