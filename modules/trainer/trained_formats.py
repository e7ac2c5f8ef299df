"""The number formats of what a run trains, and which of them fit its arithmetic and its optimizer."""

from collections.abc import Mapping, Sequence

from modules.trainer.optimizers import OPTIMIZERS, EngineOptimizer
from modules.util.config.errors import Problem, Remedy
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainModelPartConfig import TrainModelPartConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.TrainingMethod import TrainingMethod


def trained_formats(config: TrainConfig, rates: Mapping[str, float] | None = None) -> dict[str, DataType]:
    """Option -> number format of everything that a run trains.

    Args:
        config: of the run.
        rates: learning rate of each set that is trained, by name; None: what the config asks for.
    """
    found: dict[str, DataType] = {}
    method = config.training_method
    if method == TrainingMethod.LORA:
        found["lora_weight_dtype"] = config.lora_weight_dtype
    if method == TrainingMethod.EMBEDDING or any(own.train for own in config.additional_embeddings):
        found["embedding_weight_dtype"] = config.embedding_weight_dtype
    if method in (TrainingMethod.LORA, TrainingMethod.EMBEDDING):
        return found
    components = [name for name in TrainConfig.model_fields if isinstance(getattr(config, name), TrainModelPartConfig)]
    trained = [name for name in components if (name in rates if rates else getattr(config, name).train)]
    return {**found, **{f"{name}.weight_dtype": config.component_weight_dtype(name) for name in trained}}


def half_precision_problems(config: TrainConfig) -> list[Problem]:
    """Adapters and embeddings in FLOAT_16, where the run would fail or learn nothing.

    Weights themselves are not told of here: no run trains them in FLOAT_16.
    """
    entry, kind = OPTIMIZERS[config.optimizer.optimizer], config.optimizer.optimizer
    of_engine, scaled = isinstance(entry, EngineOptimizer), config.train_dtype == DataType.FLOAT_16
    problems = []
    for option, found in trained_formats(config).items():
        if found != DataType.FLOAT_16 or option.endswith(".weight_dtype") or (of_engine and not scaled):
            continue
        remedies = [Remedy.of({option: "FLOAT_32"}), Remedy.of({option: "BFLOAT_16"})]
        if scaled:
            why = (
                "train_dtype FLOAT_16 scales the loss, as FLOAT_16 has no room for small gradients, and these would "
                "be lost again when the scale is taken out"
            )
            other = ", or train_dtype to BFLOAT_16" if of_engine else ""
            remedies += [Remedy.of({"train_dtype": "BFLOAT_16"})] if of_engine else []
        else:
            why = f"{kind} remembers squares of gradients in the same format, where small ones are zero"
            other = ", or choose an optimizer such as ADAMW_ADV, which computes in FLOAT_32"
        text = f"found FLOAT_16, but {why}. Set it to FLOAT_32 or BFLOAT_16{other}"
        problems.append(Problem(option, text, tuple(remedies)))
    return problems


def mixed_half_problems(config: TrainConfig, components: Sequence[str]) -> list[Problem]:
    """Weights in one format of 16 bits below arithmetic in the other, which norms of a CPU can't compute.

    Args:
        config: of a run on a CPU.
        components: those that compute in `train_dtype`.
    """
    other = {DataType.BFLOAT_16: DataType.FLOAT_16, DataType.FLOAT_16: DataType.BFLOAT_16}.get(config.train_dtype)
    return [
        Problem(
            f"{name}.weight_dtype",
            f"found {other} with train_dtype {config.train_dtype}, of which norms on a CPU take only one. Set it to "
            f"FLOAT_32, or train_dtype to {other}",
            (Remedy.of({f"{name}.weight_dtype": "FLOAT_32"}), Remedy.of({"train_dtype": str(other)})),
        )
        for name in components
        if other is not None and config.component_weight_dtype(name) == other
    ]
