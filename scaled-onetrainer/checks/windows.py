"""Opens OneTrainer's real windows with the plugin at work, in both toolkits, and says what it finds, a line a check.

    python windows.py --onetrainer DIR --output FOLDER

Run it by the Python of a OneTrainer environment in which scaled-onetrainer is installed. FOLDER gets pictures of the
windows. Exit code 1: a check failed. customtkinter needs the program Xvfb. Nothing in the checkout is changed.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PICTURES = ("SCALED_ADAMW_ADV", "SCALED_MUON_ADV", "SCALED_PRODIGY_ADV", "STIEFEL_LORA")
OTHER = "ADAMW"
NUMBERS = ("0.5", "3", "0.25", "7", "12")
BAD = {"int": ("0.5", "x"), "float": ("x", "nan", "-1")}


class Report:
    """Prints a line for each check and counts what failed."""

    def __init__(self) -> None:
        self.failed = self.count = 0

    def say(self, what: str, problems: list[str]) -> None:
        self.count += 1
        self.failed += bool(problems)
        print(f"{'FAIL' if problems else 'ok  '} {what}{': ' if problems else ''}{'; '.join(problems[:4])}", flush=True)


def same(shown: Any, other: Any) -> bool:
    """Whether two rows show the same; 3 and 3.0 are."""
    try:
        return float(shown) == float(other)
    except (TypeError, ValueError):
        return shown == other


class Windows:
    """The checks in one toolkit.

    Args:
        kit: `Qt` or `Tk`.
        report: takes what was found.
        output: folder for pictures.
    """

    def __init__(self, kit: Any, report: Report, output: Path) -> None:
        from modules.util.config.TrainConfig import TrainConfig

        self.kit, self.report, self.output = kit, report, output
        self.make_config = TrainConfig.default_values

    def say(self, what: str, problems: list[str]) -> None:
        self.report.say(f"{self.kit.name} {what}", problems)

    # -- the optimizer window -------------------------------------------------------------------------------------

    def optimizers(self) -> None:
        from modules.ui.OptimizerParamsWindowController import OptimizerParamsWindowController
        from scaled_onetrainer.members import MEMBERS

        config = self.make_config()
        start = len(self.kit.recorder.made)
        window = self.kit.optimizer_window(OptimizerParamsWindowController(config), self.kit.state(config))
        self.kit.resize(window)
        made = self.kit.recorder.since(start)
        chooser = next(one for one in made if one.key == "optimizer")
        reset = next(one for one in made if one.kind == "button" and one.text == "Load Defaults")
        for member in MEMBERS:
            self.optimizer(window, config, chooser, reset, member)
        self.kit.close(window)

    def optimizer(self, window: Any, config: Any, chooser: Any, reset: Any, member: str) -> None:
        # there and back untouched, as OneTrainer notes options while it sets them
        for name in (member, OTHER, member):
            rows = self.choose(chooser, name)
        self.rows(rows, member)
        self.defaults(rows, config, member)
        if member in PICTURES:
            self.kit.picture(window, self.output / f"{self.kit.name}_{member}.png")
        self.bad_values(rows, config, member)
        given = self.change_all(rows, config, member)
        theirs = self.choose(chooser, OTHER)
        self.kit.type(theirs["beta1"], "0.7")
        back = {key: self.kit.shown(one) for key, one in self.choose(chooser, member).items() if one.kind != "button"}
        problems = [f"{key} {back[key]!r}, was {value!r}" for key, value in given.items() if not same(back[key], value)]
        theirs = self.choose(chooser, OTHER)
        if self.kit.shown(theirs["beta1"]) != "0.7":
            problems.append(f"beta1 of {OTHER} {self.kit.shown(theirs['beta1'])!r}")
        self.say(f"{member}: {OTHER} and back keeps both", problems)
        rows = self.choose(chooser, member)
        self.dialog(rows, config, member)
        self.kit.press(reset)
        self.defaults(rows, config, member, " after Load Defaults")

    def choose(self, chooser: Any, name: str) -> dict[str, Any]:
        """The rows by key after an optimizer was chosen; a button has none and gets that of the options it opens."""
        from scaled_onetrainer.aux_adam import OPTION
        from scaled_onetrainer.fields import key_of

        start = len(self.kit.recorder.made)
        self.kit.choose(chooser, name)
        made = [one for one in self.kit.recorder.since(start) if one.kind != "label"]
        return {one.key or key_of(OPTION): one for one in made}

    def rows(self, rows: dict[str, Any], member: str) -> None:
        from scaled_onetrainer.fields import defaults_of

        expected = set(defaults_of(member))
        problems = [f"no row of {key}" for key in sorted(expected - rows.keys())]
        problems += [f"a row of {key}" for key in sorted(rows.keys() - expected)]
        cells = [one.at for one in rows.values()]
        problems += ["two widgets in a cell"] if len(set(cells)) < len(cells) else []
        self.say(f"{member}: {len(rows)} rows, its options", problems)

    def defaults(self, rows: dict[str, Any], config: Any, member: str, when: str = "") -> None:
        from scaled_onetrainer.fields import defaults_of, options_in
        from scaled_onetrainer.members import MEMBERS
        from scaled_optim.rules.registry import RULES

        problems = []
        for key, value in defaults_of(member).items():
            if key in rows and rows[key].kind != "button":
                expected = value if isinstance(value, bool) else "" if value is None else str(value)
                if self.kit.shown(rows[key]) != expected:
                    problems.append(f"{key} shows {self.kit.shown(rows[key])!r}, expected {expected!r}")
        data = json.loads(json.dumps(config.to_settings_dict(secrets=False)))
        rule, read = RULES[MEMBERS[member]].defaults, self.make_config().from_dict(data).optimizer
        trained = options_in(member, vars(read))
        problems += [f"{key} is trained as {trained[key]!r}" for key in rule if trained[key] != rule[key]
                     or type(trained[key]) is not type(rule[key])]  # fmt: skip
        self.say(f"{member}: shows and trains the rule's defaults{when}", problems)

    def bad_values(self, rows: dict[str, Any], config: Any, member: str) -> None:
        problems = []
        for key, made in rows.items():
            kind = config.optimizer.types[key].__name__
            if made.kind != "entry" or kind not in BAD:
                continue
            before = getattr(config.optimizer, key)
            for text in (*BAD[kind], *self.out_of_bounds(key)):
                self.kit.type(made, text)
                if not self.kit.is_marked(made) or getattr(config.optimizer, key) != before:
                    problems.append(f"{key} {text} is taken")
            self.kit.type(made, "" if before is None else str(before))
            if self.kit.is_marked(made):
                problems.append(f"{key} {before} is marked")
        self.say(f"{member}: values out of bounds are marked and not taken", problems)

    @staticmethod
    def out_of_bounds(key: str) -> list[str]:
        """A value just outside of each bound of an option."""
        from scaled_onetrainer.fields import ENCODER_RATES, key_of
        from scaled_optim.options import DECLARED

        key = "muon_adam_lr" if key in ENCODER_RATES else key
        allowed = next(one.allowed for option, one in DECLARED.items() if key_of(option) == key)
        low, high = allowed.low if allowed.above else allowed.low - 1, allowed.high if allowed.below else float("inf")
        return [f"{low:g}", *([f"{high:g}"] if allowed.below else []), *(["9"] if allowed.high == 1 else [])]

    def change_all(self, rows: dict[str, Any], config: Any, member: str) -> dict[str, Any]:
        """Changes every row, and compares the JSON; what the rows show then, by key."""
        expected, shown = {}, {}
        for key, made in rows.items():
            if made.kind == "button":
                continue
            expected[key] = self.change(made, config.optimizer.types[key])
            shown[key] = self.kit.shown(made)
        data = json.loads(json.dumps(config.to_settings_dict(secrets=False)))
        found = {**data["optimizer"]}
        problems = [f"{key} {found.get(key)!r}, expected {value!r}" for key, value in expected.items()
                    if found.get(key) != value or type(found.get(key)) is not type(value)]  # fmt: skip
        read = self.make_config().from_dict(data).optimizer
        problems += [f"read back: {key} {getattr(read, key)!r}" for key, value in expected.items()
                     if str(getattr(read, key)) != str(value)]  # fmt: skip
        if str(found["optimizer"]) != member:
            problems.append(f"optimizer {found['optimizer']}")
        self.say(f"{member}: what is set in {len(expected)} rows is in the JSON", problems)
        return shown

    def change(self, made: Any, kind: type) -> Any:
        """Gives a row another value; what the JSON has then."""
        before = self.kit.shown(made)
        if made.kind == "switch":
            self.kit.press(made)
            return not before
        if made.kind == "options":
            value = [value for value in made.values if value != before][-1]
            self.kit.choose(made, value)
            return value
        if kind is str:
            self.kit.type(made, "attn, ^mlp")
            return "attn, ^mlp"
        for text in NUMBERS:
            self.kit.type(made, text)
            if not self.kit.is_marked(made) and text != before:
                return kind(text)
        return None

    def dialog(self, rows: dict[str, Any], config: Any, member: str) -> None:
        from scaled_onetrainer.aux_adam import has_aux_adam, inherited
        from scaled_onetrainer.fields import key_of

        if not has_aux_adam(member):
            return
        key = key_of("muon_adam_config")
        start, problems = len(self.kit.recorder.made), []

        def work(dialog: Any) -> None:
            self.kit.resize(dialog)
            made = {one.key: one for one in self.kit.recorder.since(start) if one.key}
            every = inherited(member, vars(config.optimizer))
            if set(made) != {key_of(option) for option in every}:
                problems.append(f"its rows: {sorted(set(made) ^ {key_of(option) for option in every})}")
            self.kit.type(made["beta2"], "0.5")
            self.kit.press(made["fisher_wd"])
            self.kit.choose(made["orthogonal_gradient_mode"], "per_rank")
            self.kit.picture(dialog, self.output / f"{self.kit.name}_{member}_adam.png")

        self.kit.during_dialog(work)
        self.kit.press(rows[key])
        expected = {"beta2": 0.5, "fisher_wd": True, "orthogonal_gradient": "per_rank"}
        found = config.to_settings_dict(secrets=False)["optimizer"].get(key)
        if found != expected:
            problems.append(f"{key} {found}")
        self.say(f"{member}: the window of its Adam changes what was changed there", problems)

    # -- the LoRA tab ---------------------------------------------------------------------------------------------

    def lora(self) -> None:
        from modules.ui.LoraTabController import LoraTabController
        from modules.util.enum.ModelType import PeftType

        for kind, key, value in (
            ("LORA", "lora_init", "ORTHONORMAL"),
            ("OFT_2", "oft_scale_mode", "ELEMENTS"),
            ("LOHA", "", ""),
            ("LOKR", "", ""),
        ):
            config = self.make_config()
            config.peft_type, start = PeftType[kind], len(self.kit.recorder.made)
            tab = self.kit.lora_tab(LoraTabController(config), self.kit.state(config))
            made = self.kit.recorder.since(start)
            ours = [one for one in made if one.key in ("lora_init", "oft_scale_mode")]
            problems = [] if [one.key for one in ours] == ([key] if key else []) else [f"rows {ours}"]
            for one in ours:
                line, column = one.at
                beside = [other for other in made if other.at in ((line, column - 1), (line, column))]
                problems += (
                    [] if len(beside) == 2 else [f"cells in use: {[other.text or other.key for other in beside]}"]
                )
            if key and ours:
                self.kit.choose(ours[0], value)
                found = config.to_settings_dict(secrets=False).get(key)
                problems += [] if found == value else [f"{key} {found}"]
                self.kit.picture(tab, self.output / f"{self.kit.name}_tab_{kind}.png")
            self.kit.close(tab)
            self.say(f"LoRA tab {kind}: {key or 'as without the plugin'}", problems)

    # -- the list of presets --------------------------------------------------------------------------------------

    def presets(self) -> None:
        from modules.ui.TopBarController import TopBarController
        from scaled_onetrainer.hooks.preset_list import PRESETS, TITLE

        config, buttons = self.make_config(), []
        make = self.kit.components.preset_menu_button
        self.kit.components.preset_menu_button = lambda *args, **kwargs: buttons.append(make(*args, **kwargs))
        bar = self.kit.top_bar(TopBarController(config), self.kit.state(config))
        self.kit.components.preset_menu_button = make
        menu = self.kit.preset_menu(buttons[0])
        folders = sorted(path.name for path in Path("training_presets").iterdir() if path.is_dir())
        found = [name for name, _ in menu if name in folders]
        self.say("presets: theirs", [] if found == sorted(folders, key=str.lower) else [f"found {found}"])
        ours = dict(menu).get(TITLE, [])
        files = sorted(PRESETS.rglob("#*.json"))
        names = [name for _, entries in ours for name, _ in entries]
        problems = [] if files and sorted(names) == sorted(path.stem for path in files) else [f"found {names}"]
        self.say(f"presets: {len(files)} of ours, once", problems)
        for family, entries in ours:
            for name, choose in entries:
                choose()
                self.kit.settle()
                self.preset(config, PRESETS / family / f"{name}.json")
        self.kit.picture(bar, self.output / f"{self.kit.name}_top_bar.png")
        self.kit.picture_of_menu(buttons[0], TITLE, self.output / f"{self.kit.name}_presets.png")
        self.kit.close(bar)

    def preset(self, config: Any, path: Path) -> None:
        """Compares the config after a preset was chosen with one that read it as training does."""
        expected = self.make_config().from_dict(json.loads(path.read_text()), migrate=False)
        kept = {"optimizer_defaults", "embedding", "concepts", "samples", "secrets"}
        theirs, ours = expected.to_dict(), config.to_dict()
        problems = [f"{key} {ours[key]}, in the file {theirs[key]}" for key in theirs.keys() - kept
                    if ours.get(key) != theirs[key]]  # fmt: skip
        self.say(f"presets: {path.stem} is loaded as it is trained", problems)


def record(kit: Any) -> dict[str, list[Any]]:
    """What the windows of OneTrainer's own optimizers and adapters are made of."""
    from modules.ui.OptimizerParamsWindowController import OptimizerParamsWindowController
    from modules.util.config.TrainConfig import TrainConfig
    from modules.util.enum.Optimizer import Optimizer

    config = TrainConfig.default_values()
    start = len(kit.recorder.made)
    window = kit.optimizer_window(OptimizerParamsWindowController(config), kit.state(config))
    chooser = next(one for one in kit.recorder.since(start) if one.key == "optimizer")
    found = {}
    for optimizer in Optimizer:
        start = len(kit.recorder.made)
        kit.choose(chooser, str(optimizer))
        # OneTrainer's window holds on to the button of an optimizer whose rows are gone
        window.muon_adam_button = None
        found[str(optimizer)] = [one.facts() for one in kit.recorder.since(start)]
    kit.close(window)
    return found


def theirs_as_without(kit: Any, report: Report) -> None:
    """Compares the rows of OneTrainer's own optimizers with those of a process in which the plugin is off."""
    from scaled_onetrainer.members import MEMBERS

    command = [sys.executable, __file__, "--onetrainer", ".", "--record"]
    off = subprocess.run(
        command, env={**os.environ, "SCALED_ONETRAINER": "0"}, check=True, stdout=subprocess.PIPE, text=True
    )
    without, found = json.loads(off.stdout.splitlines()[-1]), record(kit)
    problems = [name for name in without if found.get(name) != without[name]]
    problems += [] if found.keys() - without.keys() == MEMBERS.keys() else ["other names"]
    report.say(f"{kit.name} rows of {len(without)} optimizers of OneTrainer's are those without the plugin", problems)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onetrainer", type=Path, required=True, help="the checkout")
    parser.add_argument("--output", type=Path, help="folder for pictures")
    parser.add_argument("--toolkit", choices=("qt", "ctk"), help="only this one")
    parser.add_argument("--record", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    output = (args.output or Path(".")).resolve()
    os.chdir(args.onetrainer)
    sys.path[:0] = [os.getcwd(), str(Path(__file__).resolve().parent)]
    sys.dont_write_bytecode = True
    # as its .pth does, where it is installed
    import scaled_onetrainer.startup  # noqa: F401

    from toolkits import Qt, Tk

    if args.record:
        print(json.dumps(record(Qt())))
        return 0
    output.mkdir(parents=True, exist_ok=True)
    report = Report()
    for kind in (Qt, Tk):
        if args.toolkit not in (None, kind.name):
            continue
        kit = kind()
        windows = Windows(kit, report, output)
        steps: list[Callable[[], None]] = [windows.optimizers, windows.lora, windows.presets]
        for step in steps:
            step()
        if kind is Qt:
            theirs_as_without(kit, report)
        kit.end()
    print(f"{report.count - report.failed} of {report.count} checks passed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
