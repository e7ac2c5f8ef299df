from modules.modelSetup.BaseModelSetup import BaseModelSetup
from modules.module.LoRAModule import LoRAModuleWrapper
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.NamedParameterGroup import NamedParameterGroupCollection
from modules.util.optimizer_util import init_model_parameters

import torch


class PairSetup(BaseModelSetup):
    """A part as a whole, or adapters of its layers."""

    def setup_model(self, model, config):
        groups, part = NamedParameterGroupCollection(), model.unet
        if config.training_method is TrainingMethod.LORA:
            model.unet.requires_grad_(False)
            part = model.adapter = LoRAModuleWrapper(model.unet, "unet", config, fuse=config.fused_qkv)
            if model.adapter_state is not None:
                model.adapter.load_state_dict(model.adapter_state)
            model.adapter.hook_to_module()
        self._create_model_part_parameters(groups, "unet", part, config.unet)
        init_model_parameters(model, groups, torch.device("cpu"))
