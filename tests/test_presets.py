"""Every preset loads without a warning, and what the README's preset names is in the repository."""

import json
import re
from pathlib import Path

from modules.trainer.lr_schedule import schedule_factor
from modules.trainer.optimizers import OPTIMIZERS
from modules.util.config.load import load_train_config, resolve_concepts, resolve_samples
from modules.viewModel.recommended import rate_for
from scaled_optim.rules.registry import RULES

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRESETS = sorted((ROOT / "training_presets").rglob("*.json"))
TINY = ROOT / "training_presets" / "Tiny"
README_PRESETS = re.findall(r'--config-path "([^"]+)"', (ROOT / "README.md").read_text(encoding="utf-8"))


def refuse(text: str) -> None:
    pytest.fail(text)


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    """Paths in presets count from the repository's root."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_loads_and_can_be_trained(path):
    config = load_train_config(path, warn=refuse)
    assert config.optimizer.optimizer in OPTIMIZERS
    assert schedule_factor(config, 100)(0) > 0


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_names_concepts_and_samples_that_are_there(path):
    config = load_train_config(path, warn=refuse)
    resolve_samples(config, warn=refuse)
    if path.parent == TINY:
        for concept in resolve_concepts(config, warn=refuse):
            assert Path(concept.path).is_dir(), concept.path
    else:
        # what a full model is to learn is the user's: the tiny base's pictures are of no use to it
        assert not {"concepts", "concept_file_name"} & json.loads(path.read_text(encoding="utf-8")).keys()


@pytest.mark.parametrize("name", sorted(set(README_PRESETS)))
def test_the_readmes_preset_is_in_the_repository(name):
    assert ROOT / name in PRESETS
    config = load_train_config(name, warn=refuse)
    assert (ROOT / config.concept_file_name).is_file()
    concepts = resolve_concepts(config, warn=refuse)
    for concept in concepts:
        images = [path for path in Path(concept.path).iterdir() if path.suffix != ".txt"]
        assert images and all(path.with_suffix(".txt").is_file() for path in images)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_learning_rate_says_where_it_comes_from(path):
    told = json.loads(path.read_text(encoding="utf-8"))["//learning_rate"]
    config = load_train_config(path, warn=refuse)
    known = rate_for(config)
    if known is None:
        assert "measured on" in told
    else:
        assert (config.learning_rate, told) == (known.value, known.source)


def test_there_are_presets_and_the_readme_names_one():
    assert PRESETS and README_PRESETS


# what the tiny presets of the other optimizers may have otherwise than the README's
OWN = {
    "//learning_rate",
    "lora_init",
    "optimizer",
    "learning_rate",
    "text_encoder",
    "output_model_destination",
    "workspace_dir",
    "cache_dir",
}


@pytest.mark.parametrize("rule", RULES)
def test_there_is_a_tiny_preset_for_each_rule_of_ours(rule):
    """The same training with another optimizer, so that what differs is the optimizer."""
    readmes, other = (
        json.loads((TINY / f"#tiny LoRA{name}.json").read_text(encoding="utf-8")) for name in ("", f" {rule}")
    )
    assert {key for key in readmes.keys() | other.keys() if readmes.get(key) != other.get(key)} <= OWN
    assert other["optimizer"]["optimizer"] == rule
    parts = [config["text_encoder"] | {"learning_rate": None} for config in (readmes, other)]
    assert parts[0] == parts[1]
    for path in ("output_model_destination", "workspace_dir", "cache_dir"):
        assert other[path] != readmes[path] and rule in other[path]
