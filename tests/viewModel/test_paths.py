"""Paths that people give, whatever they are."""

from pathlib import Path

from modules.viewModel.paths import is_folder, nearest_folder, portable

import pytest


@pytest.mark.parametrize("path", ["nowhere", "a\0b", "x" * 5000, "README.md"])
def test_what_is_no_folder_is_none(path):
    assert not is_folder(path) and nearest_folder(path) in (Path.cwd(), *Path.cwd().parents)


def test_the_nearest_folder_exists(tmp_path):
    assert nearest_folder(str(tmp_path / "a" / "b.txt")) == tmp_path and is_folder(tmp_path)
    assert nearest_folder("") == Path.cwd()


def test_paths_inside_the_working_directory_are_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert portable(tmp_path / "a" / "b") == "a/b" and portable("a") == "a"
    assert portable(tmp_path.parent) == str(tmp_path.parent)
