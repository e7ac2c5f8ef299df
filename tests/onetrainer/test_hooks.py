"""What happens where OneTrainer is not as a hook expects it, and what the plugin leaves alone."""

import shutil
from pathlib import Path

from tests.onetrainer.inside import ROOT, STAND_IN, inside, run_python

import pytest

BEGIN = "import scaled_onetrainer.startup\n"
FEATURE = "modules/module/LoRAModule.py"
# an optimizer by its name, made as a run makes it
MAKE = """
from modules.util import create
from modules.util.config.TrainConfig import TrainConfig
from modules.util.NamedParameterGroup import NamedParameterGroup, NamedParameterGroupCollection
import torch
def make(name):
    config = TrainConfig.default_values().from_dict({"optimizer": {"optimizer": name}})
    groups = NamedParameterGroupCollection()
    groups.add_group(NamedParameterGroup("unet", [torch.nn.Parameter(torch.ones(2, 2))], None))
    print(type(create.create_optimizer(groups, None, config)))
"""


def without(folder: Path, file: str, old: str, new: str) -> Path:
    """A copy of the stand-in in which something has another name."""
    copy = folder / "checkout"
    shutil.copytree(STAND_IN, copy, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return copy


@pytest.mark.parametrize(
    ("file", "old", "missing", "gives"),
    [
        ("modules/util/create.py", "def create_optimizer", "create_optimizer", "the optimizers"),
        (
            "modules/util/enum/Optimizer.py",
            "def supports_fused_back_pass",
            "supports_fused_back_pass",
            "the names of the optimizers",
        ),
        (
            "modules/util/config/TrainConfig.py",
            "class TrainConfig",
            "TrainConfig",
            "the options in presets",
        ),
    ],
)
def test_core_stops_with_one_line(tmp_path, file, old, missing, gives):
    copy = without(tmp_path, file, old, old.replace(missing, f"another_{missing}"))
    module = file.removesuffix(".py").replace("/", ".")
    said = run_python("-c", f"{BEGIN}import {module}", folder=copy, code=1)
    line = said.splitlines()[-1]
    # commit, file, what was looked for, what is lost, what to do
    assert f"OneTrainer an unknown commit, {file}: found no {missing} in " in line
    assert line.endswith(f"; this takes {gives}. Update scaled-onetrainer, or run without it: SCALED_ONETRAINER=0.")
    # and so it is
    run_python("-c", f"{BEGIN}import {module}", folder=copy, SCALED_ONETRAINER="0")


def test_a_feature_stops_the_run_that_needs_it(tmp_path):
    copy = without(tmp_path, FEATURE, "OFTRotationModule", "Another")
    (copy / "modules/module/oft_utils.py").write_text(
        (copy / "modules/module/oft_utils.py").read_text().replace("OFTRotationModule", "Another")
    )
    code = f"{BEGIN}{MAKE}import modules.module.LoRAModule\n"
    said = run_python("-c", f"{code}make('SCALED_LION_ADV')", folder=copy, code=1)
    line = f"{FEATURE}: found no OFTRotationModule in modules.module.LoRAModule; this takes roles of adapters"
    assert said.count(line) == 2 and "HookError" in said.splitlines()[-1]
    # theirs run
    said = run_python("-c", f"{code}make('SGD')", folder=copy)
    assert said.count(line) == 1 and "torch.optim.sgd.SGD" in said


def test_a_window_only_says_so(tmp_path):
    table = "modules/util/optimizer_util.py"
    copy = without(tmp_path, table, "OPTIMIZER_DEFAULT_PARAMETERS", "ANOTHER")
    said = run_python("-c", f"{BEGIN}import modules.util.optimizer_util\n{MAKE}make('LORA_RITE')", folder=copy)
    line = f"{table}: found no OPTIMIZER_DEFAULT_PARAMETERS in modules.util.optimizer_util; this takes the optimizers'"
    assert said.count(line) == 1 and "PluginOptimizer" in said


def test_other_programs_with_modules_are_left_alone(tmp_path):
    """Ours is one: it has files of the same names, and an enumeration of the same name."""
    from scaled_onetrainer.checkout import MARKS, is_onetrainer

    assert is_onetrainer(STAND_IN) and not is_onetrainer(ROOT)
    look = f"{BEGIN}from modules.util.enum.Optimizer import Optimizer; print(list(Optimizer.__members__))"
    found = run_python("-c", look)
    assert "SCALED_LION_ADV" in found
    bare = run_python("-c", look, SCALED_ONETRAINER="0")
    assert "SCALED_LION_ADV" not in bare
    ours = [run_python("-c", look, folder=ROOT, SCALED_ONETRAINER=switch) for switch in ("", "0")]
    assert ours[0] == ours[1] and "LION_ADV" in ours[0]
    # any of the files that make a checkout
    for mark in MARKS:
        copy = tmp_path / mark.replace("/", "_")
        shutil.copytree(STAND_IN, copy, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / mark).rename(copy / f"{mark}.away")
        assert not is_onetrainer(copy)
    assert run_python("-c", look, folder=copy) == bare


@inside
def test_modules_look_as_if_nothing_happened():
    import inspect

    import modules.util.create
    from modules.util.enum.Optimizer import Optimizer

    assert modules.util.create.__spec__.origin == modules.util.create.__file__
    assert inspect.getmodule(Optimizer).__name__ == "modules.util.enum.Optimizer"
    assert "class Optimizer(Enum)" in inspect.getsource(Optimizer)
