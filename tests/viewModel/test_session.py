"""A window begins where the last one ended."""

import json
import os
from pathlib import Path

from modules.viewModel.Session import FIRST_PRESET, Session
from modules.viewModel.UiSettings import UiSettings

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "training_presets").symlink_to(ROOT / "training_presets")
    return tmp_path


def opened(root: Path) -> Session:
    session = Session(root)
    session.restore(pytest.fail)
    return session


def test_the_first_time_a_preset_is_open_that_can_be_tried(root, monkeypatch):
    monkeypatch.chdir(ROOT)
    session = opened(root)
    assert session.title == FIRST_PRESET and not session.is_modified
    assert session.form.problems() == []


def test_changes_that_were_not_saved_are_there_again(root):
    session = opened(root)
    session.open(session.presets.find("Tiny/tiny OFT"), pytest.fail)
    session.form.set_text("epochs", "7")
    session.settings.theme, session.settings.scale = "dark", 125
    assert session.close() == []
    again = opened(root)
    assert again.title == "Tiny/tiny OFT •" and again.form.config.epochs == 7
    assert (again.settings.theme, again.settings.scale) == ("dark", 125)


def test_tokens_are_kept_apart_and_for_oneself(root):
    session = opened(root)
    session.form.set_text("secrets.huggingface_token", "hf_secret")
    session.close()
    assert json.loads(session.secrets_path.read_text(encoding="utf-8")) == {"huggingface_token": "hf_secret"}
    if os.name != "nt":
        assert session.secrets_path.stat().st_mode & 0o777 == 0o600
    others = [path for path in root.rglob("*.json") if path != session.secrets_path and not path.is_symlink()]
    assert others and not any("hf_secret" in path.read_text(encoding="utf-8") for path in others)
    assert opened(root).form.config.secrets.huggingface_token == "hf_secret"


def test_a_preset_that_cannot_be_read_is_told_and_changes_nothing(root):
    session, heard = opened(root), []
    (root / "user_presets").mkdir()
    (root / "user_presets" / "bad.json").write_text("{", encoding="utf-8")
    assert not session.open(session.presets.find("bad"), heard.append)
    assert "bad.json: is not valid JSON" in heard[0] and session.title == FIRST_PRESET


def test_a_window_opens_whatever_its_settings_say(tmp_path):
    path = tmp_path / "ui_settings.json"
    assert UiSettings.load(path) == UiSettings()
    for text in ("", "[]", '{"theme": "pink", "scale": 3, "view": 1, "tab": null, "new": 1}'):
        path.write_text(text, encoding="utf-8")
        assert UiSettings.load(path) == UiSettings()
    UiSettings(theme="dark", scale=150, tab="data").save(path)
    assert UiSettings.load(path) == UiSettings(theme="dark", scale=150, tab="data")


def test_what_cannot_be_kept_is_told(root, monkeypatch):
    session = opened(root)
    (root / "user_presets").write_text("in the way", encoding="utf-8")
    troubles = session.close()
    assert len(troubles) == 1 and "user_presets" in troubles[0]
