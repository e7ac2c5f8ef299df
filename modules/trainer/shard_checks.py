"""What a config must not ask of a run whose processes hold the weights in parts."""

from modules.model.BaseModel import family_of
from modules.trainer.optimizers import OPTIMIZERS, EngineOptimizer
from modules.trainer.several_gpus import processes_of
from modules.util.config.errors import Problem, Remedy
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.UserError import UserError


def shard_problems(config: TrainConfig) -> list[Problem]:
    """What can't be done to weights of which each process holds a part; nothing for a run that has them whole."""
    if not config.shard_weights:
        return []
    try:
        family = family_of(config) if processes_of(config) > 1 else None
    except UserError:
        # that is told by itself
        return []
    if family is None:
        return []
    found, own, whole = [], config.optimizer.optimizer, Remedy.of({"shard_weights": False})
    if config.training_method == TrainingMethod.FINE_TUNE:
        if not isinstance(OPTIMIZERS[own], EngineOptimizer):
            text = (
                f"found {own}, but with shard_weights each process has some rows of a weight, for which this project's "
                "own optimizers are made. Choose one of them, such as ADAMW_ADV"
            )
            found.append(Problem("optimizer.optimizer", text, (Remedy.of({"optimizer.optimizer": "ADAMW_ADV"}), whole)))
        if config.train_dtype == DataType.FLOAT_16:
            text = (
                "found FLOAT_16, whose scale of the loss is not followed over weights that processes hold in parts "
                "(shard_weights). Set it to BFLOAT_16"
            )
            found.append(Problem("train_dtype", text, (Remedy.of({"train_dtype": "BFLOAT_16"}), whole)))
    if config.compile:
        text = (
            "found true, but blocks whose weights come together when they are called (shard_weights) are not compiled. "
            "Set it to false"
        )
        found.append(Problem("compile", text, (Remedy.of({"compile": False}), whole)))
    for component in family.trainable_components:
        for option, off in (("offload_fraction", 0.0), ("activation_offloading", False)):
            value, path = getattr(getattr(config, component), option), f"{component}.{option}"
            if value:
                text = (
                    f"found {str(value).lower()}, but what processes hold in parts (shard_weights) can't wait "
                    f"elsewhere, too. Set it to {str(off).lower()}"
                )
                found.append(Problem(path, text, (Remedy.of({path: off}), whole)))
    return found
