"""What the plugin takes for granted of OneTrainer's windows: see `assumptions`. Training does without them."""

from scaled_onetrainer.contract import Assumption
from scaled_onetrainer.hook_table import WINDOW
from scaled_onetrainer.syntax import Look, accepts, calls, class_named, every, function, imports, says, sets

UI = "modules/ui"
OPTIMIZER_UTIL, TRAIN_CONFIG = "modules/util/optimizer_util.py", "modules/util/config/TrainConfig.py"
OPTIMIZER_VIEW, CONTROLLER = "BaseOptimizerParamsWindowView", "OptimizerParamsWindowController"
ADAM_VIEW, LORA_VIEW, TOP_BAR = "BaseMuonAdamWindowView", "BaseLoraTabView", "TopBarController"
OPTIMIZER_ROWS, ADAM_ROWS = "the rows of the optimizer window", "the options of Muon's Adam in a window"
LORA_ROWS, PRESETS = "the rows of the LoRA tab", "the presets in the list"
DEFAULTS = "the optimizers' default values in the window"
# arguments that our rows give by name, by the function that makes a widget
WIDGETS = {
    "label": ("tooltip", "wide_tooltip", "underline"),
    "entry": ("command", "extra_validate"),
    "switch": ("command",),
    "options": ("command",),
    "options_kv": (),
    "button": ("tooltip",),
}
# the first arguments, which they give by place
FIRST = ("master", "row", "column")


def _window(file: str, what: str, gives: str, look: Look) -> Assumption:
    return Assumption(file, what, gives, WINDOW, look)


def _inherits(name: str, gives: str) -> list[Assumption]:
    """Both toolkits draw a window by what its neutral class says."""
    part = name.removeprefix("Base")
    return [
        _window(f"{UI}/{kit}{part}.py", f"{kit} draws what {name} says", gives, class_named(f"{kit}{part}", name))
        for kit in ("Ctk", "PySide6")
    ]


WINDOW_ASSUMPTIONS: list[Assumption] = [
    _window(
        OPTIMIZER_UTIL,
        "OPTIMIZER_DEFAULT_PARAMETERS by member",
        DEFAULTS,
        every(sets("", "OPTIMIZER_DEFAULT_PARAMETERS"), imports("Optimizer", "modules.util.enum.Optimizer")),
    ),
    *(
        _window(OPTIMIZER_UTIL, f"{name}() of a config gives an optimizer's options", DEFAULTS, function(name))
        for name in ("change_optimizer", "load_optimizer_defaults")
    ),
    _window(
        TRAIN_CONFIG,
        "optimizer_defaults, by name",
        DEFAULTS,
        says("TrainConfig.default_values", "optimizer_defaults"),
    ),
    *(
        _window(
            f"modules/util/ui/{kit}_components.py",
            f"{name}({', '.join(FIRST)}), with {', '.join(names) or 'nothing else by name'}",
            OPTIMIZER_ROWS,
            every(function(name, *FIRST), accepts(name, *names)),
        )
        for kit in ("ctk", "pyside6")
        for name, names in WIDGETS.items()
    ),
    _window(
        f"{UI}/{OPTIMIZER_VIEW}.py",
        "build_dynamic_content(master, controller, optimizer_ui_state, update_user_pref_cb, open_muon_adam_cb)",
        OPTIMIZER_ROWS,
        function(
            f"{OPTIMIZER_VIEW}.build_dynamic_content",
            "master",
            "controller",
            "optimizer_ui_state",
            "update_user_pref_cb",
            "open_muon_adam_cb",
        ),
    ),
    _window(
        f"{UI}/{OPTIMIZER_VIEW}.py",
        "its rows are made by self.components",
        OPTIMIZER_ROWS,
        every(*(calls(OPTIMIZER_VIEW, f"self.components.{name}") for name in ("label", "entry", "switch"))),
    ),
    *_inherits(OPTIMIZER_VIEW, OPTIMIZER_ROWS),
    *(
        _window(
            f"{UI}/{CONTROLLER}.py", f"{name}({', '.join(names)})", ADAM_ROWS, function(f"{CONTROLLER}.{name}", *names)
        )
        for name, names in (
            ("prepare_muon_adam_config", ()),
            ("save_muon_adam_config", ("adam_config",)),
            ("on_close", ()),
        )
    ),
    _window(
        f"{UI}/{ADAM_VIEW}.py",
        "build_content(master, controller, ui_state)",
        ADAM_ROWS,
        function(f"{ADAM_VIEW}.build_content", "master", "controller", "ui_state"),
    ),
    *_inherits(ADAM_VIEW, ADAM_ROWS),
    _window(
        f"{UI}/{LORA_VIEW}.py",
        "build_lora_options(master, controller, ui_state, peft_type)",
        LORA_ROWS,
        function(f"{LORA_VIEW}.build_lora_options", "master", "controller", "ui_state", "peft_type"),
    ),
    *_inherits(LORA_VIEW, LORA_ROWS),
    _window(f"{UI}/{TOP_BAR}.py", "load_preset_tree(dir)", PRESETS, function(f"{TOP_BAR}.load_preset_tree", "dir")),
    _window(
        f"{UI}/{TOP_BAR}.py",
        "load_config_from_file(filename) sets train_config",
        PRESETS,
        every(function(f"{TOP_BAR}.load_config_from_file", "filename"), sets(TOP_BAR, "self.train_config")),
    ),
]
