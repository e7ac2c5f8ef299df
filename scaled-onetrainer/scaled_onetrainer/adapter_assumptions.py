"""What the plugin takes for granted of OneTrainer's adapters and components: see `assumptions`."""

import ast

from scaled_onetrainer.contract import Assumption
from scaled_onetrainer.hook_table import FEATURE
from scaled_onetrainer.syntax import (
    accepts,
    calls,
    class_named,
    either,
    every,
    function,
    imports,
    reads,
    says,
    sets,
    sets_ending,
)

UTIL, MODULE = "modules/util", "modules/module"
ADAPTERS, ROTATIONS, FUSED = f"{MODULE}/LoRAModule.py", f"{MODULE}/oft_utils.py", f"{MODULE}/FusedModule.py"
SAVER, SETUP = "modules/modelSaver/mixin/LoRASaverMixin.py", "modules/modelSetup/BaseModelSetup.py"
ROLES, ELEMENTS, FILES = "roles and names of adapters", "OFT ELEMENTS", "files of OFT ELEMENTS"


def _no_save(tree: ast.Module) -> int | None:
    """1 unless a class that writes adapters has a `_save` of its own, which the hook does not reach."""
    for node in tree.body:
        bases = {getattr(base, "id", None) for base in getattr(node, "bases", ())}
        if "LoRASaverMixin" in bases and function(f"{node.name}._save")(tree):
            return None
    return 1


ADAPTER_ASSUMPTIONS = [
    Assumption(
        ADAPTERS,
        "LoRAModuleWrapper.__init__(orig_module, prefix, config)",
        ROLES,
        FEATURE,
        function("LoRAModuleWrapper.__init__", "orig_module", "prefix", "config"),
    ),
    Assumption(
        ADAPTERS,
        "LoRAModuleWrapper.__init__ reads config.peft_type",
        ROLES,
        FEATURE,
        reads("LoRAModuleWrapper.__init__", "config.peft_type"),
    ),
    *(
        Assumption(
            ADAPTERS,
            f"LoRAModuleWrapper.__init__ makes {name}",
            ROLES,
            FEATURE,
            reads("LoRAModuleWrapper.__init__", name),
        )
        for name in ("LoRAModule", "DoRAModule", "LoHaModule", "LoKrModule", "OFTModule")
    ),
    Assumption(
        ADAPTERS,
        "LoRAModuleWrapper.parameters() goes through lora_modules",
        ROLES,
        FEATURE,
        every(
            function("LoRAModuleWrapper.parameters"),
            sets("LoRAModuleWrapper.__init__", "self.lora_modules"),
            reads("LoRAModuleWrapper.parameters", "self.lora_modules"),
        ),
    ),
    Assumption(
        ADAPTERS,
        "an adapter's prefix is its layer's full path and a dot",
        ROLES,
        FEATURE,
        sets_ending("PeftBase.__init__", "self.prefix", "."),
    ),
    Assumption(
        ADAPTERS,
        "an adapter's layer is orig_module",
        "ORTHONORMAL start values",
        FEATURE,
        function("PeftBase.orig_module", decorated="property"),
    ),
    Assumption(
        FUSED, "a fused group's adapter is its module", ROLES, FEATURE, sets("FusedModuleGroup.__init__", "self.module")
    ),
    *(
        Assumption(
            ADAPTERS,
            f"a LoRA trains {name}",
            ROLES,
            FEATURE,
            either(sets("LoRAModule.initialize_weights", f"self.{name}"), sets("LoRAModule.__init__", f"self.{name}")),
        )
        for name in ("lora_down", "lora_up")
    ),
    *(
        Assumption(ADAPTERS, f"a LoHa trains {name}", ROLES, FEATURE, sets("LoHaModule", f"self.{name}"))
        for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    ),
    *(
        Assumption(ADAPTERS, f"a LoKr trains {name}", ROLES, FEATURE, sets("LoKrModule", f"self.{name}"))
        for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
    ),
    Assumption(
        ADAPTERS,
        "class DoRAModule(LoRAModule) trains dora_scale",
        ROLES,
        FEATURE,
        every(class_named("DoRAModule", "LoRAModule"), sets("DoRAModule", "self.dora_scale")),
    ),
    Assumption(
        ADAPTERS,
        "LoRAModule.initialize_weights(), called as it is made",
        "lora_init",
        FEATURE,
        every(function("LoRAModule.initialize_weights"), calls("LoRAModule.__init__", "self.initialize_weights")),
    ),
    *(
        Assumption(ADAPTERS, f"a LoRA's {name}", "lora_init", FEATURE, look)
        for name, look in (
            ("rank", sets("LoRAModule.__init__", "self.rank")),
            ("alpha", says("LoRAModule.__init__", "alpha")),
        )
    ),
    Assumption(
        ADAPTERS,
        "OFTModule.initialize_weights(), called as it is made, sets oft_R",
        ELEMENTS,
        FEATURE,
        every(
            function("OFTModule.initialize_weights"),
            sets("OFTModule.initialize_weights", "self.oft_R"),
            calls("OFTModule.__init__", "self.initialize_weights"),
        ),
    ),
    *(
        Assumption(ADAPTERS, f"an OFT's {name}", ELEMENTS, FEATURE, sets("OFTModule.__init__", f"self.{name}"))
        for name in ("oft_scaled", "dropout_probability")
    ),
    Assumption(
        ADAPTERS,
        "OFTRotationModule, imported by name",
        ELEMENTS,
        FEATURE,
        imports("OFTRotationModule", "modules.module.oft_utils"),
    ),
    Assumption(
        ADAPTERS,
        "an OFT on a convolution rotates by oft_R._cayley_batch",
        ELEMENTS,
        FEATURE,
        calls("OFTModule.forward", "oft_R._cayley_batch"),
    ),
    Assumption(
        ROTATIONS,
        "what OFTRotationModule is made of, by name",
        ELEMENTS,
        FEATURE,
        accepts(
            "OFTRotationModule.__init__",
            "r",
            "n_elements",
            "block_size",
            "in_features",
            "block_share",
            "oft_scaled",
            "use_cayley_neumann",
            "num_cayley_neumann_terms",
            "dropout_probability",
        ),
    ),
    *(
        Assumption(
            ROTATIONS, f"a rotation's {name}", ELEMENTS, FEATURE, sets("OFTRotationModule.__init__", f"self.{name}")
        )
        for name in (
            "r",
            "n_elements",
            "block_size",
            "in_features",
            "weight",
            "block_share",
            "oft_scaled",
            "use_cayley_neumann",
            "num_cayley_neumann_terms",
        )
    ),
    Assumption(
        ROTATIONS,
        "OFTRotationModule.forward rotates by _cayley_batch(Q, block_size)",
        ELEMENTS,
        FEATURE,
        every(
            function("OFTRotationModule._cayley_batch", "Q", "block_size"),
            calls("OFTRotationModule.forward", "self._cayley_batch"),
        ),
    ),
    Assumption(
        ROTATIONS,
        "OneTrainer's own scaled form is marked scaled_oft",
        "the reading of its files as ELEMENTS",
        FEATURE,
        says("OFTRotationModule.__init__", "scaled_oft"),
    ),
    Assumption(
        SAVER,
        "LoRASaverMixin._save(model, output_model_format)",
        FILES,
        FEATURE,
        function("LoRASaverMixin._save", "model", "output_model_format"),
    ),
    Assumption(
        SAVER, "ModelFormat, imported by name", FILES, FEATURE, imports("ModelFormat", "modules.util.enum.ModelFormat")
    ),
    Assumption(
        SAVER, "_save reads the adapter's state itself", FILES, FEATURE, calls("LoRASaverMixin", "self._get_state_dict")
    ),
    Assumption(
        "modules/modelSaver/**/*.py", "no class of LoRASaverMixin has a _save of its own", FILES, FEATURE, _no_save
    ),
    Assumption(f"{UTIL}/enum/ModelFormat.py", "ModelFormat.INTERNAL", FILES, FEATURE, sets("ModelFormat", "INTERNAL")),
]

COMPONENT_ASSUMPTIONS = [
    Assumption(
        SETUP,
        "BaseModelSetup._create_model_part_parameters(parameter_group_collection, unique_name, model)",
        "roles in full fine-tuning",
        FEATURE,
        function("BaseModelSetup._create_model_part_parameters", "parameter_group_collection", "unique_name", "model"),
    ),
    Assumption(
        SETUP,
        "BaseModelSetup.report_to_tensorboard(model, config, scheduler, tensorboard)",
        "curves",
        FEATURE,
        function("BaseModelSetup.report_to_tensorboard", "model", "config", "scheduler", "tensorboard"),
    ),
    Assumption(
        SETUP,
        "its curves are at model.train_progress.global_step",
        "curves",
        FEATURE,
        every(
            calls("BaseModelSetup.report_to_tensorboard", "tensorboard.add_scalar"),
            reads("BaseModelSetup.report_to_tensorboard", "model.train_progress.global_step"),
        ),
    ),
]
