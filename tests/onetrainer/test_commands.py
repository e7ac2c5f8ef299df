"""python -m scaled_onetrainer: train in the stand-in and in its children, doctor, check, and where install looks."""

import json
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

from scaled_onetrainer.__main__ import main
from scaled_onetrainer.command import CommandError
from scaled_onetrainer.install import python_of, sources
from tests.onetrainer.inside import DISTRIBUTIONS, ROOT, STAND_IN, run_python

import pytest

RUN = ("-m", "scaled_onetrainer")


def config_in(folder: Path, **values: object) -> Path:
    places = {"workspace_dir": str(folder / "workspace"), "output_model_destination": str(folder / "out.safetensors")}
    path = folder / "config.json"
    path.write_text(json.dumps({"optimizer": {"optimizer": "SCALED_ADAMW_ADV"}, **places, **values}))
    return path


def test_train_from_another_folder(tmp_path):
    config = config_in(tmp_path)
    said = run_python(*RUN, "train", "--onetrainer", str(STAND_IN), "--config-path", str(config), folder=tmp_path)
    assert said.startswith("step 4, loss ") and len(said.splitlines()) == 1
    assert (tmp_path / "out.safetensors").exists()


def test_children_of_train_have_the_plugin(tmp_path):
    """torch.multiprocessing.spawn starts a Python that has imported nothing of what its parent has."""
    config = config_in(tmp_path, device_indexes="0,1")
    said = run_python(*RUN, "train", "--config-path", str(config))
    assert said == "child 0: SCALED_ADAMW_ADV\n"
    # what it is without the plugin: the child trains with something else, and says nothing of it
    said = run_python("scripts/train.py", "--config-path", str(config))
    assert "child 0: ADAMW\n" in said


def test_doctor(tmp_path):
    from scaled_onetrainer.hook_table import HOOKS
    from scaled_onetrainer.members import MEMBERS

    said = run_python(*RUN, "doctor", "--onetrainer", str(STAND_IN), folder=tmp_path).splitlines()
    good = [line for line in said if line.startswith("ok ")]
    assert len(good) == len(HOOKS) + 2 * len(MEMBERS) + 2 and said[-1] == "All is as it should be."
    assert sum("presets are taken as they are written" in line for line in good) == 1
    assert sum("factors moved, roles LORA_DOWN, LORA_UP" in line for line in good) == len(MEMBERS)
    said = run_python(*RUN, "doctor", code=1, SCALED_ONETRAINER="off")
    assert "MISSING the plugin is switched off by the environment variable SCALED_ONETRAINER" in said


def test_doctor_names_what_is_missing(tmp_path):
    copy = shutil.copytree(STAND_IN, tmp_path / "checkout", ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / "modules/modelSaver/mixin/LoRASaverMixin.py"
    path.write_text(path.read_text().replace("_save(", "_write("))
    (copy / "modules/ui/BaseLoraTabView.py").write_text("import no_such_toolkit\n")
    said = run_python(*RUN, "doctor", "--onetrainer", str(copy), code=1).splitlines()
    missing = [line for line in said if line.startswith("MISSING")]
    assert len(missing) == 1 and "LoRASaverMixin.py: found no _save in LoRASaverMixin" in missing[0]
    # a window that can't be loaded is a fact: nobody needs a display to train
    assert any("BaseLoraTabView.py can't be loaded by this Python: ModuleNotFoundError" in line for line in said)
    assert said[-1] == "Something is missing: see the lines above."


def test_help_and_check(capsys):
    said = run_python(*RUN, "--help")
    assert all(word in said for word in ("train", "doctor", "check", "install", "uninstall", "SCALED_ONETRAINER=0"))
    # syntax trees alone: nothing of the folders is run, so this process does
    assert main(["check", str(STAND_IN)]) == 0
    assert "hold, 0 of training are missing" in capsys.readouterr().out
    assert main(["check", str(ROOT)]) == 1
    assert "MISSING modules/trainer/MultiTrainer.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "is no checkout of OneTrainer: it has no modules/util/NamedParameterGroup.py"),
        (["doctor", "--onetrainer", "nowhere"], "is no checkout of OneTrainer"),
        (["check", "nowhere"], "nowhere is no folder"),
        (["install", "--onetrainer", str(STAND_IN)], "has no environment yet: there is no Python in"),
        (["install", "--onetrainer", str(STAND_IN), "--python", "none"], "none is no Python that can be started"),
        (["doctor", "--colour"], "unknown arguments: --colour"),
        (["walk"], "invalid choice: 'walk'"),
    ],
)
def test_errors_in_words(tmp_path, arguments, message):
    said = run_python(*RUN, *arguments, folder=tmp_path, code=2)
    assert message in said and "Traceback" not in said


def test_train_refuses_to_run_switched_off(tmp_path):
    said = run_python(*RUN, "train", "--config-path", str(config_in(tmp_path)), code=2, SCALED_ONETRAINER="0")
    assert "The environment variable SCALED_ONETRAINER switches the plugin off" in said


def python_in(folder: Path, *parts: str) -> Path:
    path = folder.joinpath(*parts)
    path.parent.mkdir(parents=True)
    path.touch(mode=0o755)
    return path


def test_where_install_looks(tmp_path):
    with pytest.raises(CommandError, match="has no environment yet"):
        python_of(tmp_path, {})
    conda = python_in(tmp_path, "conda_env", "bin", "python")
    assert python_of(tmp_path, {}) == conda
    usual = python_in(tmp_path, "venv", "bin", "python")
    assert python_of(tmp_path, {}) == usual
    assert python_of(tmp_path, {"OT_PREFER_VENV": "false"}) == conda
    other = python_in(tmp_path, "other", "bin", "python")
    for named in ("other", str(other.parents[1])):
        assert python_of(tmp_path, {"OT_PYTHON_VENV": named}) == other
    assert python_of(tmp_path, {}, str(other)) == other
    windows = tmp_path / "windows"
    assert python_of(windows, {}, str(other)) == other
    found = python_in(windows, "venv", "Scripts", "python.exe")
    assert python_of(windows, {}) == found


def test_install_takes_the_folders_that_it_runs_from():
    assert sources() == DISTRIBUTIONS


def test_install_train_and_leave(tmp_path):
    """In a venv where OneTrainer's own scripts make theirs, with torch as it is here."""
    copy = shutil.copytree(STAND_IN, tmp_path / "checkout", ignore=shutil.ignore_patterns("__pycache__"))
    venv.create(copy / "venv", with_pip=False, symlinks=True)
    packages = next((copy / "venv").rglob("site-packages"))
    # torch, safetensors and pip; a line here is no place where `.pth` files are read
    (packages / "here.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    before = {path.relative_to(packages) for path in packages.rglob("*")}
    said = run_python(*RUN, "install", "--onetrainer", str(copy), folder=tmp_path)
    assert f"It is at work the next time that OneTrainer starts in {copy}." in said and "To leave: " in said
    assert (packages / "scaled_onetrainer.pth").exists()

    python = python_of(copy, {})
    script = [str(python), "scripts/train.py", "--config-path", str(config_in(tmp_path))]
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SCALED_ONETRAINER")}
    done = subprocess.run(script, cwd=copy, env=kept, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.startswith("step 4, loss "), done.stderr
    config_in(tmp_path, device_indexes="0,1")
    done = subprocess.run(script, cwd=copy, env=kept, capture_output=True, text=True, timeout=300)
    assert done.stdout == "child 0: SCALED_ADAMW_ADV\n", done.stderr

    said = run_python(*RUN, "uninstall", "--onetrainer", str(copy), folder=tmp_path)
    assert "Taken away from " in said
    assert {path.relative_to(packages) for path in packages.rglob("*")} == before
