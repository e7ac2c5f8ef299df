"""The check of what the plugin takes for granted, over the stand-in and over copies that lack something."""

import ast
import shutil
from pathlib import Path

from scaled_onetrainer.assumptions import ASSUMPTIONS
from scaled_onetrainer.contract import check, report
from scaled_onetrainer.hook_table import CORE, FEATURE, HOOKS, WINDOW
from scaled_onetrainer.syntax import accepts, calls, class_named, every, function, imports, reads, says, sets
from tests.onetrainer.inside import STAND_IN

import pytest

TEXT = """
from a.b import name
class Kind(base.Base, Other):
    member = 1
    @property
    def shown(self): return self.value
    def make(self, one, two, *, three=3):
        self.x, self.y = one, two
        owner.part.call(one, two, word=3)
        return {"key": 1}
"""


def holds(look) -> bool:
    return look(ast.parse(TEXT)) is not None


def test_looks():
    assert holds(class_named("Kind", "Base", "Other")) and not holds(class_named("Kind", "Third"))
    assert holds(function("Kind.make", "one")) and not holds(function("Kind.make", "two"))
    assert holds(function("Kind.shown", decorated="property")) and not holds(
        function("Kind.make", decorated="property")
    )
    assert holds(accepts("Kind.make", "two", "three")) and not holds(accepts("Kind.make", "four"))
    assert holds(sets("Kind", "member")) and holds(sets("Kind.make", "self.y")) and not holds(sets("Kind", "self.z"))
    assert holds(calls("", "part.call", positional=2, keyword="word")) and not holds(calls("", "call", positional=1))
    assert not holds(calls("", "art.call")) and not holds(calls("Kind.shown", "call"))
    assert holds(reads("Kind.shown", "self.value")) and not holds(reads("Kind.make", "self.value"))
    assert holds(says("Kind.make", "key")) and not holds(says("Kind.make", "lock"))
    assert holds(imports("name", "a.b")) and not holds(imports("name", "a"))
    assert not holds(every(says("", "key"), says("", "lock")))
    assert function("Kind.make")(ast.parse(TEXT)) == 7


def test_the_stand_in_has_every_shape(capsys):
    assert report(STAND_IN, ASSUMPTIONS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ASSUMPTIONS) + 1 and all(line.startswith("ok ") for line in lines[:-1])
    assert f"{len(ASSUMPTIONS)} hold, 0 of training are missing, 0 of windows" in lines[-1]


def test_every_hook_has_assumptions():
    assert {one.kind for one in ASSUMPTIONS} == {CORE, FEATURE, WINDOW}
    for module in HOOKS:
        file = f"{module.replace('.', '/')}.py"
        assert sum(one.file == file for one in ASSUMPTIONS) >= 2, f"nothing is checked of {file} but that it is there"


def copy_of(folder: Path) -> Path:
    return shutil.copytree(STAND_IN, folder / "checkout", ignore=shutil.ignore_patterns("__pycache__"))


@pytest.mark.parametrize("file", sorted({one.file for one in ASSUMPTIONS if "*" not in one.file}))
def test_each_file_that_is_gone_is_missed(tmp_path, file):
    copy = copy_of(tmp_path)
    (copy / file).write_text("nothing = 1\n")
    missing = {finding.assumption.what for finding in check(copy, ASSUMPTIONS) if finding.line is None}
    expected = {one.what for one in ASSUMPTIONS if one.file == file and "the file that" not in one.what}
    assert missing == expected


@pytest.mark.parametrize(
    ("file", "old", "new", "what", "code"),
    [
        ("modules/util/create.py", "parameter_group_collection, state_dict", "state_dict, parameter_group_collection",
         "create_optimizer(parameter_group_collection, state_dict, config)", 1),
        ("modules/util/optimizer_util.py", "create.create_optimizer(", "create_optimizer(",
         "init_model_parameters calls create.create_optimizer by attribute", 1),
        ("modules/util/enum/Optimizer.py", '    SGD = "SGD"', '    SGD = "SGD"\n    LORA_RITE = "LORA_RITE"',
         "no member has the name of one of ours", 1),
        ("modules/trainer/GenericTrainer.py", "step_parameter(tensor, group, i)", "step_parameter(tensor)",
         "the fused backward pass calls step_parameter(tensor, group, i)", 1),
        ("modules/module/oft_utils.py", "self.n_elements", "self.count", "a rotation's n_elements", 1),
        ("modules/modelSaver/PairLoRASaver.py", "def _get_state_dict(self, model)", "def _save(self, model)",
         "no class of LoRASaverMixin has a _save of its own", 1),
        ("modules/modelSaver/mixin/InternalModelSaverMixin.py", "param_group_optimizer_mapping", "optimizer_names",
         "a backup's optimizer state has param_group_optimizer_mapping", 1),
        ("modules/ui/BaseLoraTabView.py", "peft_type", "kind",
         "build_lora_options(master, controller, ui_state, peft_type)", 0),
    ],
)  # fmt: skip
def test_a_change_is_named(tmp_path, capsys, file, old, new, what, code):
    copy = copy_of(tmp_path)
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))
    assert report(copy, ASSUMPTIONS) == code
    missing = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MISSING")]
    assert len(missing) == 1 and missing[0].startswith(f"MISSING {file}  {what}: this takes ")
    assert "update OneTrainer or scaled-onetrainer" in missing[0]


def test_no_checkout_at_all(tmp_path, capsys):
    assert report(tmp_path, ASSUMPTIONS) == 1
    assert "is not recognised as a checkout of OneTrainer" in capsys.readouterr().out
