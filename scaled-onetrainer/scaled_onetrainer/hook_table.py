"""Which modules of OneTrainer the plugin adds to, and with what. Read at every start of Python: nothing is loaded."""

from dataclasses import dataclass

# How much depends on a hook: nothing runs rightly without it, a feature does not, or a window only lacks rows.
CORE, FEATURE, WINDOW = "core", "feature", "window"


@dataclass(frozen=True)
class Hook:
    """What is done with one module of OneTrainer.

    Attributes:
        name: of our module in `scaled_onetrainer.hooks`; its `apply(module)` does it.
        kind: `CORE`, `FEATURE` or `WINDOW`.
        gives: what people lose without it.
    """

    name: str
    kind: str
    gives: str


HOOKS: dict[str, Hook] = {
    "modules.util.enum.Optimizer": Hook("optimizer_names", CORE, "the names of the optimizers"),
    "modules.util.config.TrainConfig": Hook("config_fields", CORE, "the options in presets"),
    "modules.util.create": Hook("factory", CORE, "the optimizers"),
    "modules.util.optimizer_util": Hook("default_values", WINDOW, "the optimizers' default values in the window"),
    "modules.module.LoRAModule": Hook("adapters", FEATURE, "roles of adapters, start values and OFT ELEMENTS"),
    "modules.modelSaver.mixin.LoRASaverMixin": Hook("adapter_files", FEATURE, "files of OFT ELEMENTS"),
    "modules.modelSetup.BaseModelSetup": Hook("model_components", FEATURE, "roles in full fine-tuning, and curves"),
    "modules.ui.BaseOptimizerParamsWindowView": Hook("optimizer_window", WINDOW, "the rows of the optimizer window"),
    "modules.ui.OptimizerParamsWindowController": Hook("aux_adam_config", WINDOW, "the options of Muon's Adam"),
    "modules.ui.BaseMuonAdamWindowView": Hook("aux_adam_window", WINDOW, "the rows of the window of Muon's Adam"),
    "modules.ui.BaseLoraTabView": Hook("lora_tab", WINDOW, "the rows of the LoRA tab"),
    "modules.ui.TopBarController": Hook("preset_list", WINDOW, "the presets in the list"),
}
