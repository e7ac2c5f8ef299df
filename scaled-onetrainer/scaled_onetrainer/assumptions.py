"""What the plugin takes for granted of OneTrainer, where it is looked for, and what is lost without it."""

import ast

from scaled_onetrainer.adapter_assumptions import ADAPTER_ASSUMPTIONS, COMPONENT_ASSUMPTIONS
from scaled_onetrainer.contract import Assumption
from scaled_onetrainer.fields import ENCODER_RATES, OPTIMIZER_FIELDS
from scaled_onetrainer.hook_table import CORE, FEATURE, HOOKS, WINDOW
from scaled_onetrainer.members import MEMBERS
from scaled_onetrainer.syntax import (
    calls,
    class_named,
    every,
    function,
    imports,
    reads,
    says,
    says_with,
    scope_of,
    sets,
)
from scaled_onetrainer.window_assumptions import WINDOW_ASSUMPTIONS

UTIL = "modules/util"
NAMES = f"{UTIL}/enum/Optimizer.py"
BASE_CONFIG, TRAIN_CONFIG = f"{UTIL}/config/BaseConfig.py", f"{UTIL}/config/TrainConfig.py"
CREATE, OPTIMIZER_UTIL = f"{UTIL}/create.py", f"{UTIL}/optimizer_util.py"
GROUPS, TORCH_UTIL = f"{UTIL}/NamedParameterGroup.py", f"{UTIL}/torch_util.py"
BACKUP, RESUME = (
    "modules/modelSaver/mixin/InternalModelSaverMixin.py",
    "modules/modelLoader/mixin/InternalModelLoaderMixin.py",
)
TRAINER, SCALER, MULTI = (
    "modules/trainer/GenericTrainer.py",
    f"{UTIL}/CustomGradScaler.py",
    "modules/trainer/MultiTrainer.py",
)


def _own_members(tree: ast.Module) -> int | None:
    """The line of the enumeration, unless it has got members of our names itself."""
    found = scope_of(tree, "Optimizer")
    if found is None or any(sets("Optimizer", name)(tree) for name in MEMBERS):
        return None
    return found.lineno


WORDS = "the options in presets"
OPTIMIZERS = "the optimizers"
GUARDED = "the stop of our presets where the plugin is missing"

_NAMES = [
    Assumption(NAMES, "class Optimizer(Enum)", "the names of the optimizers", CORE, class_named("Optimizer", "Enum")),
    Assumption(NAMES, "no member has the name of one of ours", "the names of the optimizers", CORE, _own_members),
    Assumption(
        NAMES,
        "property Optimizer.is_adaptive",
        "learning rates that Prodigy finds",
        CORE,
        function("Optimizer.is_adaptive", decorated="property"),
    ),
    Assumption(
        NAMES,
        "property Optimizer.is_schedule_free, which answers for every member",
        "learning rate schedules",
        CORE,
        function("Optimizer.is_schedule_free", decorated="property"),
    ),
    Assumption(
        NAMES,
        "Optimizer.supports_fused_back_pass()",
        "the fused backward pass",
        CORE,
        function("Optimizer.supports_fused_back_pass"),
    ),
    Assumption(
        NAMES,
        "str() of a member is its value",
        "the names of the optimizers",
        CORE,
        every(function("Optimizer.__str__"), reads("Optimizer.__str__", "self.value")),
    ),
    Assumption(
        NAMES,
        "maybe_adjust_lrs(lrs, optimizer) reads d of a group",
        "the learning rate that Prodigy found in curves",
        WINDOW,
        every(function("Optimizer.maybe_adjust_lrs", "lrs", "optimizer"), says("Optimizer.maybe_adjust_lrs", "d")),
    ),
]

_CONFIG = [
    Assumption(
        BASE_CONFIG,
        "BaseConfig.from_dict(data, migrate)",
        WORDS,
        CORE,
        function("BaseConfig.from_dict", "data", "migrate"),
    ),
    Assumption(BASE_CONFIG, "BaseConfig.to_dict()", WORDS, CORE, function("BaseConfig.to_dict")),
    *(
        Assumption(BASE_CONFIG, f"a config has {name} by key", WORDS, CORE, sets("BaseConfig.__init__", f"self.{name}"))
        for name in ("types", "nullables", "default_values")
    ),
    *(
        Assumption(BASE_CONFIG, f"from_dict reads {name}", WORDS, CORE, reads("BaseConfig.from_dict", f"self.{name}"))
        for name in ("types", "nullables")
    ),
    *(
        Assumption(
            BASE_CONFIG, f"from_dict knows fields of type {kind}", WORDS, CORE, reads("BaseConfig.from_dict", kind)
        )
        for kind in sorted({field.kind.__name__ for field in OPTIMIZER_FIELDS.values()})
    ),
    Assumption(
        BASE_CONFIG,
        "from_dict reads a config inside a config by its own from_dict",
        WORDS,
        CORE,
        calls("BaseConfig.from_dict", "from_dict", keyword="migrate"),
    ),
    Assumption(BASE_CONFIG, "to_dict writes members as their str()", WORDS, CORE, calls("BaseConfig.to_dict", "str")),
    Assumption(
        BASE_CONFIG,
        "to_dict writes a config inside a config by its own to_dict",
        WORDS,
        CORE,
        calls("BaseConfig.to_dict", "value.to_dict"),
    ),
    *(
        Assumption(
            TRAIN_CONFIG,
            f"class {name}(BaseConfig) with a static default_values()",
            WORDS,
            CORE,
            every(class_named(name, "BaseConfig"), function(f"{name}.default_values", decorated="staticmethod")),
        )
        for name in ("TrainOptimizerConfig", "TrainConfig")
    ),
    *(
        Assumption(TRAIN_CONFIG, f"optimizer.{key}", WORDS, CORE, says("TrainOptimizerConfig.default_values", key))
        for key in ("optimizer", "fused_back_pass", "compile")
    ),
    *(
        Assumption(
            TRAIN_CONFIG,
            f"optimizer.{key}",
            "Muon's rates for text encoders",
            FEATURE,
            says("TrainOptimizerConfig.default_values", key),
        )
        for key in ENCODER_RATES
    ),
    *(
        Assumption(TRAIN_CONFIG, key, OPTIMIZERS, CORE, says("TrainConfig.default_values", key))
        for key in ("optimizer", "learning_rate", "training_method", "tensorboard", "train_device", "peft_type")
    ),
    *(
        Assumption(
            TRAIN_CONFIG,
            f"{key}, where the guard of our presets stands",
            GUARDED,
            FEATURE,
            says("TrainConfig.default_values", key),
        )
        for key in ("learning_rate_scheduler", "custom_learning_rate_scheduler")
    ),
    *(
        Assumption(
            TRAIN_CONFIG,
            f"TrainConfig.{name} goes through to_dict",
            WORDS,
            CORE,
            every(function(f"TrainConfig.{name}", "secrets"), calls(f"TrainConfig.{name}", "to_dict")),
        )
        for name in ("to_settings_dict", "to_pack_dict")
    ),
    Assumption(
        TRAIN_CONFIG, "TrainConfig.model_part_configs()", OPTIMIZERS, CORE, function("TrainConfig.model_part_configs")
    ),
    *(
        Assumption(TRAIN_CONFIG, f"a part's {key}", OPTIMIZERS, CORE, says("TrainModelPartConfig.default_values", key))
        for key in ("train", "offload_fraction")
    ),
    *(
        Assumption(
            f"{UTIL}/enum/LearningRateScheduler.py",
            f"LearningRateScheduler.{name}",
            GUARDED,
            FEATURE,
            sets("LearningRateScheduler", name),
        )
        for name in ("CONSTANT", "CUSTOM")
    ),
    Assumption(
        CREATE,
        "create_lr_scheduler imports the class that CUSTOM names",
        GUARDED,
        FEATURE,
        every(
            reads("create_lr_scheduler", "config.custom_learning_rate_scheduler"),
            calls("create_lr_scheduler", "import_module"),
            calls("create_lr_scheduler", "getattr"),
        ),
    ),
]

_FACTORY = [
    Assumption(
        CREATE,
        "create_optimizer(parameter_group_collection, state_dict, config)",
        OPTIMIZERS,
        CORE,
        function("create_optimizer", "parameter_group_collection", "state_dict", "config"),
    ),
    Assumption(
        OPTIMIZER_UTIL,
        "init_model_parameters calls create.create_optimizer by attribute",
        OPTIMIZERS,
        CORE,
        every(calls("init_model_parameters", "create.create_optimizer"), imports("create", "modules.util")),
    ),
    Assumption(
        OPTIMIZER_UTIL,
        "init_model_parameters hands on a backup's model.optimizer_state_dict",
        "resuming",
        CORE,
        reads("init_model_parameters", "model.optimizer_state_dict"),
    ),
    Assumption(
        TORCH_UTIL,
        "optimizer_to_device_ reads state_dict()['state']",
        "resuming",
        CORE,
        every(calls("optimizer_to_device_", "optimizer.state_dict"), says("optimizer_to_device_", "state")),
    ),
    Assumption(
        GROUPS,
        "NamedParameterGroupCollection.parameters_for_optimizer(config)",
        OPTIMIZERS,
        CORE,
        function("NamedParameterGroupCollection.parameters_for_optimizer", "config"),
    ),
    *(
        Assumption(
            GROUPS,
            f"a group for an optimizer has {key}",
            OPTIMIZERS,
            CORE,
            says("NamedParameterGroupCollection.parameters_for_optimizer", key),
        )
        for key in ("name", "params", "lr", "initial_lr")
    ),
    Assumption(
        GROUPS,
        "NamedParameterGroupCollection.unique_name_mapping",
        OPTIMIZERS,
        CORE,
        function("NamedParameterGroupCollection.unique_name_mapping"),
    ),
    *(
        Assumption(
            BACKUP,
            f"a backup's optimizer state has {key}",
            "resuming",
            CORE,
            says("InternalModelSaverMixin._save_internal_data", key),
        )
        for key in ("param_group_mapping", "param_group_optimizer_mapping")
    ),
    Assumption(
        BACKUP,
        "a backup is made of optimizer.state_dict(), with torch.save",
        "resuming",
        CORE,
        every(
            calls("InternalModelSaverMixin._save_internal_data", "optimizer.state_dict"),
            calls("InternalModelSaverMixin._save_internal_data", "torch.save"),
        ),
    ),
    Assumption(
        RESUME,
        "a backup's optimizer state is read with torch.load",
        "resuming",
        CORE,
        every(
            sets("InternalModelLoaderMixin._load_internal_data", "model.optimizer_state_dict"),
            calls("InternalModelLoaderMixin._load_internal_data", "torch.load"),
        ),
    ),
    Assumption(
        f"{UTIL}/enum/TrainingMethod.py",
        "TrainingMethod.FINE_TUNE",
        "fine-tuning with layer offloading",
        FEATURE,
        sets("TrainingMethod", "FINE_TUNE"),
    ),
    Assumption(
        "modules/modelSetup/*EmbeddingSetup.py",
        "a group of embeddings has a name that says so",
        "the role of embeddings",
        FEATURE,
        says_with("", "embeddings"),
    ),
    Assumption(
        TRAINER,
        "the fused backward pass calls step_parameter(tensor, group, i)",
        "the fused backward pass",
        CORE,
        calls("GenericTrainer", "optimizer.step_parameter", positional=3),
    ),
    Assumption(
        SCALER,
        "so does the gradient scaler",
        "the fused backward pass with float16",
        FEATURE,
        calls("CustomGradScaler.maybe_opt_step_parameter", "optimizer.step_parameter", positional=3),
    ),
    Assumption(
        TRAINER,
        "optimizer.step() and optimizer.zero_grad() end a step",
        OPTIMIZERS,
        CORE,
        every(calls("GenericTrainer.train", "optimizer.zero_grad"), calls("GenericTrainer.train", "optimizer.step")),
    ),
    Assumption(
        TRAINER,
        "the trainer sets out from the files that hooks go into",
        OPTIMIZERS,
        CORE,
        every(imports("create", "modules.util"), imports("TrainConfig", "modules.util.config.TrainConfig")),
    ),
    Assumption(
        MULTI,
        "children of torch.multiprocessing.spawn, which read the config anew",
        "several GPUs",
        FEATURE,
        every(
            calls("MultiTrainer.train", "multiprocessing.spawn"),
            calls("MultiTrainer._train_process", "TrainConfig.default_values"),
        ),
    ),
    Assumption(
        "scripts/train.py",
        "main() and TrainArgs",
        "the command `train`",
        FEATURE,
        every(function("main"), reads("main", "TrainArgs.parse_args")),
    ),
    Assumption(f"{UTIL}/args/TrainArgs.py", "--config-path", "the command `train`", FEATURE, says("", "--config-path")),
]

_PLACES = [
    Assumption(
        f"{module.replace('.', '/')}.py",
        f"the file that the hook {hook.name} goes into",
        hook.gives,
        hook.kind,
        lambda tree: 1,
    )
    for module, hook in HOOKS.items()
]

ASSUMPTIONS: list[Assumption] = [
    *_PLACES,
    *_NAMES,
    *_CONFIG,
    *_FACTORY,
    *ADAPTER_ASSUMPTIONS,
    *COMPONENT_ASSUMPTIONS,
    *WINDOW_ASSUMPTIONS,
]
"""All of them, in the order in which a run meets them."""
