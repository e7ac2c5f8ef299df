"""Documentation and default files come from the declarations and are up to date."""

import json
import subprocess
import sys
from pathlib import Path

from modules.util.config.document import (
    BEGIN,
    END,
    commented_concepts,
    commented_config,
    commented_samples,
    option_comment,
    options_markdown,
    update_document,
    with_current_tables,
)
from modules.util.config.errors import ConfigError
from modules.util.config.load import load_concepts, load_samples, load_train_config
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig
from scripts.create_train_files import main

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "create_train_files.py"


def test_docs_are_up_to_date():
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert with_current_tables(text, "docs/config.md") == text, "run scripts/create_train_files.py --update-docs"


def test_docs_name_every_option():
    tables = options_markdown()
    for config_class in (TrainConfig, TrainOptimizerConfig):
        for name in config_class.model_fields:
            assert f"| `{name}` |" in tables


def test_tables_are_well_formed():
    # four cells between five bars; bars inside cells are escaped
    for line in options_markdown().splitlines():
        if line.startswith("|"):
            assert line.replace(r"\|", "").count("|") == 5, line


def test_update(tmp_path):
    path = tmp_path / "doc.md"
    path.write_text(f"before\n{BEGIN}\nstale words\n{END}\nafter\n", encoding="utf-8")
    assert update_document(path) and not update_document(path)
    text = path.read_text(encoding="utf-8")
    assert (
        text.startswith("before\n")
        and text.endswith("\nafter\n")
        and "stale words" not in text
        and "`lora_rank`" in text
    )
    path.write_text("nothing")
    with pytest.raises(ConfigError, match="expected one line"):
        update_document(path)


def test_comment_names_unit_bounds_and_values():
    assert option_comment(TrainConfig, "batch_size").endswith("[unit: images; a whole number of at least 1]")
    assert "one of LORA, LOHA, OFT_2, LOKR" in option_comment(TrainConfig, "peft_type")
    assert "suggestions: full" in option_comment(TrainConfig, "layer_filter_preset")


def test_commented_files_load_as_defaults(tmp_path):
    """As a user runs it, in a process of its own; below in this one, because to start costs seconds."""
    destinations = {"config": "my config.json", "concepts": "sub/concepts.json", "samples": "samples.json"}
    arguments = [part for name, path in destinations.items() for part in (f"--{name}-output-destination", path)]
    result = subprocess.run(
        [sys.executable, SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8",
        timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    warnings = []
    config = load_train_config(tmp_path / "my config.json", warn=warnings.append)
    assert config.config_hash() == TrainConfig().config_hash()
    assert len(load_concepts(tmp_path / "sub" / "concepts.json", warn=warnings.append)) == 1
    assert len(load_samples(tmp_path / "samples.json", warn=warnings.append)) == 1
    assert warnings == []
    assert json.loads((tmp_path / "my config.json").read_text(encoding="utf-8")) == commented_config()
    config.save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text(encoding="utf-8")) == commented_config()


def test_every_option_has_a_comment():
    data = commented_config()
    assert all(f"//{name}" in data for name in TrainConfig.model_fields if name != "secrets")
    assert all(f"//{name}" in data["optimizer"] for name in TrainOptimizerConfig.model_fields)
    assert "secrets" not in data
    assert data["//text_encoder"].endswith("Options as in unet.")
    assert "//path" in commented_concepts()[0] and "//enable_random_flip" in commented_concepts()[0]["image"]
    assert "//prompt" in commented_samples()[0]


def test_existing_files_are_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.json").write_text("mine")
    assert main(["--config-output-destination", "c.json", "--samples-output-destination", "s.json"]) == 1
    assert "c.json: exists already; pass --overwrite to replace it" in capsys.readouterr().err
    assert (tmp_path / "c.json").read_text() == "mine" and not (tmp_path / "s.json").exists()
    assert main(["--config-output-destination", "c.json", "--overwrite"]) == 0
    assert (tmp_path / "c.json").read_text(encoding="utf-8") != "mine"


def test_unusable_arguments(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["--config-output-destination", "file/c.json"]) == 1
    assert "cannot be written" in capsys.readouterr().err
