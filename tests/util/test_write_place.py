"""What may be written to."""

import os

from modules.util.config.file_kind import kind_at
from modules.util.UserError import UserError
from modules.util.write_place import check_folder_place

import pytest


def test_what_stands_at_a_path(tmp_path):
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "ring").symlink_to("ring")
    assert (kind_at(tmp_path), kind_at(file)) == ("a folder", "a file")
    for nothing in (tmp_path / "none", file / "below", tmp_path / "ring", "a\0b"):
        assert kind_at(nothing) == ""
    with pytest.raises(UserError, match="workspace_dir: .*file is a file, expected a folder"):
        check_folder_place(file, "workspace_dir")


def test_a_folder_that_another_process_makes_meanwhile_is_no_file(tmp_path, monkeypatch):
    """Of several processes of a run one makes the workspace while the others look at it."""
    folder, stat, made = tmp_path / "work space", os.stat, []

    def then_made(path, *args, **kwargs):
        try:
            return stat(path, *args, **kwargs)
        finally:
            if not made:
                made.append(path)
                os.mkdir(folder)

    monkeypatch.setattr(os, "stat", then_made)
    check_folder_place(folder, "workspace_dir")
    monkeypatch.undo()
    assert folder.is_dir()
