"""A window begins where the last one ended."""

import json
import os
import subprocess
import sys
from pathlib import Path

from modules.util.config.errors import ConfigError
from modules.util.config.write_json import write_json
from modules.util.texts import SYSTEM
from modules.viewModel.Session import FIRST_PRESET, Session
from modules.viewModel.UiSettings import UiSettings, fitting_geometry, share_within
from modules.viewModel.window_lock import LOCK, take_window

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


def test_a_new_window_speaks_as_the_system_and_a_choice_stays(tmp_path):
    path = tmp_path / "ui_settings.json"
    assert UiSettings.load(path).language == SYSTEM
    for kept, found in (("en", "en"), ("de", "de"), (SYSTEM, SYSTEM), ("xx", SYSTEM)):
        UiSettings(language=kept).save(path)
        assert UiSettings.load(path).language == found


def test_what_cannot_be_kept_is_told(root, monkeypatch):
    session = opened(root)
    (root / "user_presets").write_text("in the way", encoding="utf-8")
    (trouble,) = session.close()
    assert "user_presets: is a file, expected a folder" in trouble
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        session.presets.save_as("mine", session.form.config)


def test_tokens_of_a_file_with_a_typo_are_not_lost(root):
    path, text = root / "secrets.json", '{"huggingface_token": "hf_precious",}'
    path.write_text(text, encoding="utf-8")
    session, heard = Session(root), []
    session.restore(heard.append)
    assert "secrets.json: is not valid JSON" in heard[0]
    assert session.close() == [] and path.read_text(encoding="utf-8") == text
    session.form.set_text("secrets.huggingface_token", "hf_new")
    (trouble,) = session.close()
    assert "tokens" in trouble and "secrets.json" in trouble and path.read_text(encoding="utf-8") == text
    path.unlink()
    assert session.close() == [] and json.loads(path.read_text(encoding="utf-8")) == {"huggingface_token": "hf_new"}


def test_tokens_are_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "secrets.json"
    path.write_text('{"huggingface_token": "hf_old"}', encoding="utf-8")
    path.chmod(0o644)

    def fail(*names) -> None:
        if os.name != "nt":
            assert Path(names[0]).stat().st_mode & 0o777 == 0o600
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="No space left"):
        patch.setattr(os, "replace", fail)
        write_json(path, {"huggingface_token": "hf_new"}, private=True)
    assert "hf_old" in path.read_text(encoding="utf-8") and list(tmp_path.iterdir()) == [path]
    write_json(path, {"huggingface_token": "hf_new"}, private=True)
    assert "hf_new" in path.read_text(encoding="utf-8") and list(tmp_path.iterdir()) == [path]


def test_tokens_of_a_preset_never_replace_those_of_the_user(root):
    (root / "user_presets").mkdir()
    (root / "user_presets" / "p.json").write_text('{"secrets": {"huggingface_token": "theirs"}}', encoding="utf-8")
    session, heard = opened(root), []
    for own in ("", "mine"):
        session.form.set_text("secrets.huggingface_token", own)
        session.open(session.presets.find("p"), heard.append)
        assert session.form.config.secrets.huggingface_token == own and "p has access tokens" in heard[-1]
        assert not session.is_modified


def test_what_was_typed_and_refused_counts_as_a_change(root):
    session = opened(root)
    rate = session.form.text("learning_rate")
    session.form.set_text("learning_rate", "-1")
    assert session.is_modified and session.title == f"{FIRST_PRESET} •" and session.name == FIRST_PRESET
    refused = f"“Learning rate” keeps {rate}: found -1, expected a number of at least 0"
    assert session.refused() == [refused] and session.close() == [refused]
    session.form.set_text("learning_rate", rate)
    assert not session.is_modified and session.close() == []


def test_a_refused_token_is_not_shown(root):
    session = opened(root)
    session.form.set_value("secrets.cloud", {"password": "hunter2"})
    session.form.set_text("secrets.cloud", "{")
    (refused,) = session.refused()
    assert "hunter2" not in refused and "“Secrets › Cloud access” keeps what it was" in refused


def test_what_changed_is_kept_without_closing(root):
    session = opened(root)
    assert session.keep() == [] and not (root / "user_presets").exists(), "nothing has changed yet"
    session.form.set_text("epochs", "7")
    session.form.set_text("secrets.huggingface_token", "hf_secret")
    session.settings.scale = 125
    assert session.keep() == []
    again = opened(root)
    assert (again.form.config.epochs, again.settings.scale) == (7, 125)
    assert again.form.config.secrets.huggingface_token == "hf_secret"
    kept = root / "user_presets" / ".last_session.json"
    before = kept.stat().st_mtime_ns
    assert session.keep() == [] and kept.stat().st_mtime_ns == before, "nothing is written twice"


def test_the_open_preset_is_found_again_beside_another_of_its_name(root):
    session = opened(root)
    session.presets.save_as(FIRST_PRESET, session.form.config)
    for key in (FIRST_PRESET, f"{FIRST_PRESET} (own)"):
        session.open(session.presets.find(key), pytest.fail)
        session.close()
        assert opened(root).presets.current.key == key


@pytest.mark.parametrize(
    ("kept", "screens", "fits"),
    [
        ("1280x800+20+20", (0, 0, 1920, 1080), True),
        ("1280x800+-1500+20", (0, 0, 1920, 1080), False),
        ("1280x800+-1500+20", (-1920, 0, 3840, 1080), True),
        ("1280x800+20+-900", (0, -1080, 1920, 2160), True),
        ("1280x800+2000+20", (0, 0, 1920, 1080), False),
        ("1280x800+2000+20", (0, 0, 3840, 1080), True),
        ("1280x800+1850+20", (0, 0, 1920, 1080), False),
        ("200x100+20+20", (0, 0, 1920, 1080), False),
        # its foot would be below the edge of a smaller screen, or cut by the title bar
        ("1280x800+0+0", (0, 0, 1280, 800), False),
        ("1280x800+0+300", (0, 0, 1920, 1080), False),
        ("1920x1040+0+20", (0, 0, 1920, 1080), True),
        ("2560x1000+0+0", (0, 0, 1920, 1080), False),
        ("1280x800", (0, 0, 1920, 1080), False),
        ("", (0, 0, 1920, 1080), False),
    ],
)
def test_a_window_stands_where_it_can_be_seen(kept, screens, fits):
    assert fitting_geometry(kept, screens, "usual", (900, 560)) == (kept if fits else "usual")


def test_places_of_sashes_are_kept_and_nonsense_is_not_taken(tmp_path):
    path = tmp_path / "settings.json"
    UiSettings(panes={"run": 0.4}).save(path)
    assert UiSettings.load(path).panes == {"run": 0.4}
    write_json(path, {"panes": {"run": 0.4, "tools": 7, "list": "0.5", "form": -1.0}})
    assert UiSettings.load(path).panes == {"run": 0.4}
    write_json(path, {"panes": [1]})
    assert UiSettings.load(path).panes == {} == UiSettings().panes


@pytest.mark.parametrize(
    ("place", "room", "expected"), [(300, 1000, 300), (10, 1000, 200), (990, 1000, 700), (10, 300, 120)]
)
def test_a_sash_leaves_both_panes_what_they_need(place, room, expected):
    assert share_within(place, room, (200, 300)) == expected


def test_a_folder_has_one_window_and_those_that_are_gone_do_not_count(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from modules.viewModel.window_lock import take_window\n"
        "print(take_window(Path(sys.argv[1])), flush=True); time.sleep(60)"
    )
    folder = tmp_path / "ui_runs"
    other = subprocess.Popen([sys.executable, "-c", script, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "0\n"
        note = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        assert take_window(folder) == note["pid"] == other.pid
        # the number of the process was given to another one since
        (folder / LOCK).write_text(json.dumps({**note, "born": note["born"] - 100}), encoding="utf-8")
        assert take_window(folder) == 0 == take_window(folder)
        (folder / LOCK).write_text(json.dumps(note), encoding="utf-8")
        assert take_window(folder) == other.pid
    finally:
        other.kill()
        other.communicate()
    assert take_window(folder) == 0
    for text in ("", "null", "{}", '{"pid": "x", "born": 1}'):
        (folder / LOCK).write_text(text, encoding="utf-8")
        assert take_window(folder) == 0
        assert json.loads((folder / LOCK).read_text(encoding="utf-8"))["pid"] == os.getpid()
