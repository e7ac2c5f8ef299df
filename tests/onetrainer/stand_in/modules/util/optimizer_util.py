from modules.util.config.TrainConfig import TrainOptimizerConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.torch_util import optimizer_to_device_

OPTIMIZER_DEFAULT_PARAMETERS = {
    Optimizer.ADAMW: {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01},
    Optimizer.SGD: {"weight_decay": 0.0},
}


def change_optimizer(config):
    chosen = TrainOptimizerConfig.default_values()
    chosen.from_dict(OPTIMIZER_DEFAULT_PARAMETERS[config.optimizer.optimizer])
    chosen.optimizer = config.optimizer.optimizer
    return chosen


def load_optimizer_defaults(config):
    config.optimizer_defaults.pop(str(config.optimizer.optimizer), None)
    return change_optimizer(config)


def init_model_parameters(model, parameters, train_device):
    from modules.util import create

    model.parameters = parameters
    model.optimizer = create.create_optimizer(parameters, model.optimizer_state_dict, model.train_config)
    optimizer_to_device_(model.optimizer, train_device)
    model.optimizer_state_dict, model.param_group_mapping = None, parameters.unique_name_mapping
