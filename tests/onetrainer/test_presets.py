"""The presets that the plugin adds to OneTrainer's list."""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from scaled_onetrainer.fields import ADAPTER_FIELDS, SCALE_FORMS, STARTS, defaults_of, options_in
from scaled_onetrainer.hooks.config_fields import CLASS, GUARD, KEPT, SCHEDULER, guarded, unguarded
from scaled_onetrainer.members import MEMBERS

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "scaled-onetrainer" / "scaled_onetrainer" / "presets"
FILES = sorted(FOLDER.rglob("*.json"))
ADAPTER = (
    "peft_type",
    "lora_rank",
    "lora_alpha",
    "lora_decompose",
    "lora_init",
    "oft_block_size",
    "oft_scaled",
    "oft_scale_mode",
)
# our own preset for the same family and method, and the options that only the one for OneTrainer has
OURS = {"#scaled Finetune": {"centered_wd", "centered_wd_mode"}}
SAME = {
    "SDXL/#scaled LoRA": "SDXL/#sdxl 1.0 LoRA",
    "SDXL/#scaled DoRA": "SDXL/#sdxl 1.0 DoRA",
    "SDXL/#scaled OFT": "SDXL/#sdxl 1.0 OFT",
    "SDXL/#scaled Finetune": "SDXL/#sdxl 1.0",
    "SD1.5/#scaled LoRA": "Stable Diffusion 1.5/#sd 1.5 LoRA",
    "SD1.5/#scaled Finetune": "Stable Diffusion 1.5/#sd 1.5",
    "Flux 2/#scaled LoRA 8GB": "Flux2/#flux2 LoRA 8GB",
    "Flux 2/#scaled LoRA 16GB": "Flux2/#flux2 LoRA 16GB",
    "Flux 2/#scaled DoRA": "Flux2/#flux2 DoRA",
    "Flux 2/#scaled OFT": "Flux2/#flux2 OFT",
    # OneTrainer's are for a model of more than twice the size, so the same state needs more memory
    "Flux 2/#scaled Finetune": "Flux2/#flux2 Finetune 24GB",
    "Flux 2/#scaled Finetune 16GB": "Flux2/#flux2 Finetune 16GB",
}


@cache
def preset(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


every_preset = pytest.mark.parametrize("path", FILES, ids=name)


def test_every_family_has_its_presets():
    """An adapter family has all five kinds; nothing lies beside the folders of families."""
    methods: dict[str, set[str]] = {}
    for path in FILES:
        assert path.parent.parent == FOLDER
        kind = "Finetune" if preset(path)["training_method"] == "FINE_TUNE" else path.stem.removeprefix("#scaled ")
        methods.setdefault(path.parent.name, set()).add(re.sub(r" \d+GB", "", kind))
    assert len(methods) == 21
    only_full = {family for family, kinds in methods.items() if kinds == {"Finetune"}}
    assert only_full == {"PixArt Alpha", "Sana", "Stable Cascade"}
    for family, kinds in methods.items():
        for method in ("LoRA", "DoRA", "OFT", "Stiefel LoRA", "RITE LoRA"):
            assert family in only_full or any(kind.endswith(method) for kind in kinds), (family, method)


def test_no_two_presets_have_one_name():
    # as a disk that knows no upper case sees them
    assert [key for key, count in Counter(name(path).lower() for path in FILES).items() if count > 1] == []
    settings = Counter(
        json.dumps({key: value for key, value in preset(path).items() if key != "//made_from"}, sort_keys=True)
        for path in FILES
    )
    assert max(settings.values()) == 1


@every_preset
def test_the_optimizer_is_ours_with_options_of_its_own(path: Path):
    optimizer = preset(path)["optimizer"]
    member = optimizer["optimizer"]
    assert member in MEMBERS
    assert optimizer.keys() - {"optimizer"} <= defaults_of(member).keys()
    found = options_in(member, {**defaults_of(member), **optimizer})
    for key, value in optimizer.items():
        assert key not in found or found[key] == value
    # what the window takes an optimizer's options from
    assert preset(path)["optimizer_defaults"][member] == optimizer


@every_preset
def test_the_adapter_goes_with_the_optimizer(path: Path):
    config = preset(path)
    full = config["training_method"] == "FINE_TUNE"
    assert config["training_method"] in ("LORA", "FINE_TUNE") and path.stem.startswith("#scaled ")
    assert config.get("lora_init", ADAPTER_FIELDS["lora_init"].default) in STARTS
    assert config.get("oft_scale_mode", ADAPTER_FIELDS["oft_scale_mode"].default) in SCALE_FORMS
    assert (config["optimizer"]["optimizer"] == "STIEFEL_LORA") == (config.get("lora_init") == "ORTHONORMAL")
    assert config["optimizer"].get("scaled_optm", False) != (config["optimizer"]["optimizer"] == "STIEFEL_LORA")
    if full:
        assert not any(key in config for key in ADAPTER)
    elif config["peft_type"] == "OFT_2":
        assert config["oft_scaled"] and config["oft_scale_mode"] == "ELEMENTS"
    else:
        assert config["lora_alpha"] == config["lora_rank"]
    offloaded = any(
        isinstance(component, dict) and component.get("offload_fraction") and component.get("train")
        for component in config.values()
    )
    assert not (full and offloaded) or config["optimizer"]["fused_back_pass"]


@every_preset
def test_it_stops_where_the_plugin_is_missing(path: Path):
    config = preset(path)
    assert config[SCHEDULER] == "CUSTOM" and config[CLASS] == GUARD
    real = unguarded(config)
    assert real[SCHEDULER] == "CONSTANT" and real[CLASS] is None and not any(key in real for key in KEPT.values())
    assert unguarded(guarded(real)) == real


@every_preset
def test_nothing_of_a_machine_is_in_it(path: Path):
    def texts(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for key, part in value.items() for text in (key, *texts(part))]
        return [value] if isinstance(value, str) else []

    for text in texts(preset(path)):
        assert not re.match(r"/[^/]|[~\\]|[A-Za-z]:\\", text), text
        assert not re.search(r"token|secret|api.?key|hf_[A-Za-z0-9]{8}", text, re.IGNORECASE), text


@pytest.mark.parametrize(("theirs", "ours"), SAME.items())
def test_it_recommends_what_our_own_preset_does(theirs: str, ours: str):
    there, here = preset(FOLDER / f"{theirs}.json"), preset(ROOT / "training_presets" / f"{ours}.json")
    assert there["model_type"] == here["model_type"]
    assert there["learning_rate"] == here["learning_rate"]
    assert there["//learning_rate"] == here["//learning_rate"]
    for key in (*ADAPTER, "lora_decompose_output_axis"):
        assert there.get(key) == here.get(key), key
    there_optimizer = {**there["optimizer"], "optimizer": MEMBERS[there["optimizer"]["optimizer"]]}
    more = OURS.get(Path(theirs).name, set())
    assert there_optimizer.keys() - here["optimizer"].keys() == more
    assert {key: value for key, value in there_optimizer.items() if key not in more} == here["optimizer"]
