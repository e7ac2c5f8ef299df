"""The rows of our optimizers, adapters and presets in OneTrainer's windows, built with widgets that only take notes."""

import json
import math
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

from scaled_onetrainer.fields import ENCODER_RATES, as_field, defaults_of, is_switch, key_of, options_in
from scaled_onetrainer.hooks import aux_adam_window, lora_tab, optimizer_window, preset_list
from scaled_onetrainer.members import MEMBERS
from scaled_onetrainer.run_hook import HookError
from scaled_onetrainer.window_rows import ADVANCED, DIALOG, DROPDOWN, ENTRY, RUN, SWITCH, option_sections, sections_of
from scaled_optim.allowed_values import Choice, Numbers, Options
from scaled_optim.options import DECLARED
from scaled_optim.rules.registry import RULES

import pytest

# OneTrainer's keys for the rates of Muon's Adam in text encoders have the bounds of its rate
OPTIONS = {key_of(option): option for option in DECLARED} | dict.fromkeys(ENCODER_RATES, "muon_adam_lr")


class Var:
    def __init__(self, value):
        self.value = value

    def get(self):
        return self.value

    def set(self, value):
        self.value = value


class State:
    """Of a config: a text or a truth for each key, as the windows hold them."""

    def __init__(self, values):
        self.vars = {
            key: Var(value if isinstance(value, bool) else "" if value is None else str(value))
            for key, value in values.items()
        }

    def get_var(self, key):
        return self.vars[key]


class Components:
    """Notes each widget that is asked for: kind, row, column, and the rest."""

    def __init__(self):
        self.made = []

    def label(self, master, row, column, text, tooltip=None, wide_tooltip=False, underline=False):
        self.made.append(("label", row, column, {"text": text, "help": tooltip, "heading": underline}))

    def entry(self, master, row, column, ui_state, key, command=None, extra_validate=None):
        self.made.append((ENTRY, row, column, {"key": key, "command": command, "check": extra_validate}))

    def switch(self, master, row, column, ui_state, key, command=None):
        self.made.append((SWITCH, row, column, {"key": key, "command": command}))

    def options(self, master, row, column, values, ui_state, key, command=None):
        self.made.append((DROPDOWN, row, column, {"key": key, "command": command, "values": values}))

    def options_kv(self, master, row, column, values, ui_state, key):
        self.made.append((DROPDOWN, row, column, {"key": key, "values": values}))

    def button(self, master, row, column, text, command, tooltip=None):
        self.made.append((DIALOG, row, column, {"key": "muon_aux_adam_config", "command": command}))

    def widgets(self):
        return {facts["key"]: (kind, row, column, facts) for kind, row, column, facts in self.made if "key" in facts}


def rows_of(member):
    return {row.key: row for section in sections_of(member) for row in section.rows}


@pytest.mark.parametrize("member", MEMBERS)
def test_the_rows_are_the_rules_options(member):
    rows = [row.key for section in sections_of(member) for row in section.rows]
    assert sorted(rows) == sorted(defaults_of(member)) and len(set(rows)) == len(rows)
    assert {key: row.default for key, row in rows_of(member).items()} == defaults_of(member)


@pytest.mark.parametrize("member", MEMBERS)
def test_sections_are_in_order_and_few_people_change_the_last(member):
    titles = [section.title for section in sections_of(member)]
    order = ["General", "Features", "Muon", "Prodigy", RUN, ADVANCED]
    assert titles == [title for title in order if title in titles] and titles[-2:] == [RUN, ADVANCED]
    for section in sections_of(member):
        if section.title == RUN:
            assert [row.key for row in section.rows] == ["fused_back_pass", "compile", "fused_kernels"]
            continue
        declared = [DECLARED[OPTIONS[row.key]] for row in section.rows]
        if section.title == ADVANCED:
            assert all(one.advanced for one in declared)
        else:
            assert all(one.section == section.title.lower() for one in declared)
            assert all(not one.advanced or isinstance(one.allowed, Options) for one in declared)


@pytest.mark.parametrize("member", MEMBERS)
def test_a_row_has_the_widget_of_its_values(member):
    for key, row in rows_of(member).items():
        if key not in OPTIONS:
            assert row.widget == SWITCH
            continue
        allowed = DECLARED[OPTIONS[key]].allowed
        if isinstance(allowed, Options):
            assert row.widget == DIALOG
        elif is_switch(allowed):
            assert row.widget == SWITCH and isinstance(row.default, bool)
        elif isinstance(allowed, Choice):
            assert row.widget == DROPDOWN and len(row.values) == len(allowed.values) > 1 and row.default in row.values
        else:
            assert row.widget == ENTRY
        assert bool(row.values) == (row.widget == DROPDOWN) and bool(row.check) == isinstance(allowed, Numbers)


@pytest.mark.parametrize("member", MEMBERS)
def test_a_tooltip_says_what_it_does_its_unit_bounds_and_default(member):
    for key, row in rows_of(member).items():
        assert not re.search(r"`|\bnull\b|\bNone\b|\bTrue\b", row.help), row.help
        option = OPTIONS.get(key)
        if option is None:
            assert row.help.endswith(("Default: on.", "Default: off."))
            continue
        declared = DECLARED[option]
        assert row.title == declared.title or key in ENCODER_RATES
        assert (f"Unit: {declared.unit}." in row.help) == bool(declared.unit)
        if isinstance(declared.allowed, Numbers):
            assert f"at least {declared.allowed.low}" in row.help or f"above {declared.allowed.low}" in row.help
        if row.widget != DIALOG:
            value = as_field(option, RULES[MEMBERS[member]].defaults[option])
            shown = {None: "empty", True: "on", False: "off"}.get(value) if value in (None, True, False) else value
            if isinstance(value, int | float) and not isinstance(value, bool):
                shown = str(value)
            assert row.help.endswith(f"Default: {shown}.")


def test_rates_of_text_encoders_are_beside_that_of_the_others():
    muon = next(section for section in sections_of("SCALED_MUON_ADV") if section.title == "Muon")
    keys = [row.key for row in muon.rows]
    place = keys.index("muon_adam_lr")
    assert keys[place + 1 : place + 3] == list(ENCODER_RATES)
    check = muon.rows[place + 1].check
    assert check("0.5") is None and check("") is None and check("-1") and check("inf")


def test_texts_of_tooltips_name_what_the_window_shows():
    rows = rows_of("SCALED_MUON_ADV")
    assert "“Muon layers”" in rows["muon_adam_regex"].help
    assert ". Empty: the model's blocks." in rows["muon_hidden_layers"].help
    assert rows_of("SCALED_PRODIGY_ADV")["growth_rate"].help.endswith("A number at least 1. Default: inf.")


@pytest.mark.parametrize("member", MEMBERS)
def test_a_check_takes_what_training_takes(member):
    for key, row in rows_of(member).items():
        if row.check is None or key in ENCODER_RATES:
            continue
        whole = DECLARED[OPTIONS[key]].allowed.whole
        for text in ("-1", "0", "0.5", "0.999", "1", "2", "1e-9", "inf", "nan", "x", "1,5"):
            try:
                options_in(member, {key: int(text) if whole else float(text)})
                right = True
            except ValueError:
                right = False
            assert (row.check(text) is None) == right, (key, text)
        assert row.check("") is None and row.check(" ") is None
        assert str(row.check("x")).startswith("expected ")


@pytest.mark.parametrize("member", MEMBERS)
def test_each_row_is_built_once_with_its_label_left_of_it(member):
    components, values = Components(), defaults_of(member)
    changed, dialog = object(), object()
    optimizer_window.build_sections(components, None, State(values), sections_of(member), changed, dialog)
    widgets = components.widgets()
    assert widgets.keys() == values.keys()
    cells = [(row, column) for _, row, column, _ in components.made]
    # OneTrainer takes away everything below the first row, when another optimizer is chosen
    assert len(set(cells)) == len(cells) and min(row for row, _ in cells) == 1
    labels = {(row, column): facts for kind, row, column, facts in components.made if kind == "label"}
    for key, row in rows_of(member).items():
        kind, line, column, facts = widgets[key]
        label = labels[line, column - 1]
        assert kind == row.widget and (label["text"], label["help"]) == (row.title, row.help) and column in (1, 4)
        assert facts["command"] is (dialog if kind == DIALOG else changed)
        if kind == DROPDOWN:
            assert tuple(facts["values"]) == row.values
        if kind == ENTRY:
            assert bool(facts["check"]) == bool(row.check)
            assert row.check is None or all(facts["check"](text) == row.check(text) for text in ("-1", "x", "2"))
    headings = [facts["text"] for kind, _, _, facts in components.made if kind == "label" and facts["heading"]]
    assert headings == [section.title for section in sections_of(member)]


def test_null_of_a_dropdown_is_shown_as_its_default():
    state = State({**defaults_of("LORA_RITE"), "state_precision": None, "rite_scale": "mean"})
    optimizer_window.build_sections(Components(), None, state, sections_of("LORA_RITE"), None, None)
    assert state.get_var("state_precision").get() == "auto" and state.get_var("rite_scale").get() == "mean"


def view_module(name, method):
    """A module with a view whose method notes that it was called."""
    module = ModuleType("modules.ui.stand_in")
    calls = []
    kind = type(name, (), {method: lambda self, *args: calls.append(args)})
    setattr(module, name, kind)
    return module, kind, calls


def test_the_optimizer_window_is_theirs_for_their_optimizers():
    module, kind, calls = view_module("BaseOptimizerParamsWindowView", "build_dynamic_content")
    optimizer_window.apply(module)
    view, components = kind(), Components()
    view.components, view.muon_adam_button = components, "theirs"
    config = SimpleNamespace(optimizer=SimpleNamespace(optimizer="ADAMW"))
    view.build_dynamic_content("master", SimpleNamespace(config=config), "state", "changed", "dialog")
    assert len(calls) == 1 and not components.made and view.muon_adam_button == "theirs"


def test_the_optimizer_window_remembers_what_is_changed_in_it():
    module, kind, calls = view_module("BaseOptimizerParamsWindowView", "build_dynamic_content")
    optimizer_window.apply(module)
    view, components, kept = kind(), Components(), []
    view.components, view.muon_adam_button = components, "of another optimizer"
    config = SimpleNamespace(optimizer=SimpleNamespace(optimizer="LORA_RITE"))
    state = State(defaults_of("LORA_RITE"))
    view.build_dynamic_content("master", SimpleNamespace(config=config), state, lambda: kept.append(1), None)
    assert (
        not calls and view.muon_adam_button is None and components.widgets().keys() == defaults_of("LORA_RITE").keys()
    )
    assert len(kept) == 1, "what was set when the optimizer was chosen"
    command = components.widgets()["beta1"][3]["command"]
    command()
    command("as a dropdown calls it")
    assert len(kept) == 3
    config.optimizer.optimizer = "ADAMW"
    command()
    assert len(kept) == 3, "values of another optimizer are not kept as this one's"


def test_the_window_of_the_auxiliary_adam():
    module, kind, calls = view_module("BaseMuonAdamWindowView", "build_content")
    aux_adam_window.apply(module)
    view, components = kind(), Components()
    view.components = components
    config = SimpleNamespace(optimizer=SimpleNamespace(**{**defaults_of("SCALED_MUON_ADV"), "weight_decay": 0.25}))
    options = RULES["ADAMW_ADV"].defaults
    state = State({key_of(option): as_field(option, value) for option, value in options.items()})
    controller = SimpleNamespace(config=config, parent_optimizer_type="SCALED_MUON_ADV")
    view.build_content("master", controller, state)
    assert not calls and components.widgets().keys() == {key_of(option) for option in options}
    helps = {facts["text"]: facts["help"] for kind_, _, _, facts in components.made if kind_ == "label"}
    assert helps["Weight decay"].endswith("Default: 0.25.")
    assert [section.title for section in option_sections(options)] == ["General", "Features", ADVANCED]
    view.build_content("master", SimpleNamespace(config=config, parent_optimizer_type="MUON"), state)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "kind, key, words",
    [("LORA", "lora_init", ["KAIMING", "NORMAL", "ORTHONORMAL"]), ("OFT_2", "oft_scale_mode", ["ROW", "ELEMENTS"])],
)
def test_the_lora_tab_has_one_row_more(kind, key, words):
    module, view, calls = view_module("BaseLoraTabView", "build_lora_options")
    lora_tab.apply(module)
    made = view()
    made.components = Components()
    made.build_lora_options("master", "controller", "state", kind)
    assert len(calls) == 1
    label, dropdown = made.components.made
    assert dropdown[3] == {"key": key, "values": [(word, word) for word in words]}
    assert label[1:3] == (dropdown[1], dropdown[2] - 1) and all(word in label[3]["help"] for word in words)


@pytest.mark.parametrize("kind", ["LOHA", "LOKR"])
def test_the_lora_tab_of_others_is_theirs(kind):
    module, view, calls = view_module("BaseLoraTabView", "build_lora_options")
    lora_tab.apply(module)
    made = view()
    made.components = Components()
    made.build_lora_options("master", "controller", "state", kind)
    assert len(calls) == 1 and not made.components.made


def test_a_view_that_is_not_there_is_named():
    with pytest.raises(HookError, match="build_dynamic_content"):
        optimizer_window.apply(
            SimpleNamespace(BaseOptimizerParamsWindowView=type("BaseOptimizerParamsWindowView", (), {}))
        )


class OptimizerConfig:
    """The part of a config that is noted for an optimizer."""

    def __init__(self, values=None):
        self.optimizer = "ADAMW"
        self.values = dict(values or {})

    @classmethod
    def default_values(cls):
        return cls()

    def from_dict(self, data):
        self.optimizer, self.values = data["optimizer"], {k: v for k, v in data.items() if k != "optimizer"}
        return self

    def to_dict(self):
        return {"optimizer": self.optimizer, **self.values}


def preset_module():
    module = ModuleType("modules.ui.stand_in")

    class TopBarController:
        def __init__(self, config):
            self.train_config = config

        def load_preset_tree(self, dir="presets"):
            found = []
            for folder in sorted(Path(dir).iterdir()):
                found.append((folder.stem, self.load_preset_tree(str(folder)) if folder.is_dir() else str(folder)))
            return found

        def load_config_from_file(self, filename):
            try:
                with open(filename, encoding="utf-8") as file:
                    self.train_config.optimizer.from_dict(json.load(file))
            except FileNotFoundError:
                return None
            return self.train_config

    module.TopBarController = TopBarController
    return module


@pytest.fixture
def presets(tmp_path, monkeypatch):
    for folder, family, name in (("theirs", "SD", "#a"), ("theirs", "XL", "#b"), ("ours", "XL", "#c")):
        (tmp_path / folder / family).mkdir(parents=True)
        (tmp_path / folder / family / f"{name}.json").write_text(
            json.dumps({"optimizer": "LORA_RITE" if folder == "ours" else "ADAMW", "beta1": 0.5})
        )
    monkeypatch.setattr(preset_list, "PRESETS", tmp_path / "ours")
    module = preset_module()
    preset_list.apply(module)
    return module.TopBarController(SimpleNamespace(optimizer=OptimizerConfig(), optimizer_defaults={})), tmp_path


def test_the_list_of_presets_ends_with_ours(presets):
    controller, folder = presets
    tree = controller.load_preset_tree(str(folder / "theirs"))
    assert [name for name, _ in tree] == ["SD", "XL", "scaled"]
    assert [name for _, inner in tree[:2] for name, _ in inner] == ["#a", "#b"], "ours are at the top only"
    assert tree[2] == ("scaled", [("XL", [("#c", str(folder / "ours" / "XL" / "#c.json"))])])
    assert controller.load_preset_tree(str(folder / "theirs")) == tree


def test_without_presets_of_ours_the_list_is_theirs(presets, monkeypatch, tmp_path):
    controller, folder = presets
    (tmp_path / "none").mkdir()
    monkeypatch.setattr(preset_list, "PRESETS", tmp_path / "none")
    assert [name for name, _ in controller.load_preset_tree(str(folder / "theirs"))] == ["SD", "XL"]


def test_a_preset_of_ours_keeps_its_options_when_the_window_sets_defaults(presets):
    controller, folder = presets
    config = controller.load_config_from_file(str(folder / "ours" / "XL" / "#c.json"))
    noted = config.optimizer_defaults["LORA_RITE"]
    assert noted is not config.optimizer and noted.to_dict() == {"optimizer": "LORA_RITE", "beta1": 0.5}
    config.optimizer_defaults["LORA_RITE"] = "as a file says it"
    controller.load_config_from_file(str(folder / "ours" / "XL" / "#c.json"))
    assert config.optimizer_defaults == {"LORA_RITE": "as a file says it"}


def test_a_preset_of_theirs_notes_nothing(presets):
    controller, folder = presets
    assert controller.load_config_from_file(str(folder / "theirs" / "SD" / "#a.json")).optimizer_defaults == {}
    assert controller.load_config_from_file(str(folder / "no.json")) is None


def test_numbers_without_a_limit_take_infinity():
    check = rows_of("SCALED_PRODIGY_ADV")["growth_rate"].check
    assert check("inf") is None and check(str(math.inf)) is None and check("0.5") is not None
