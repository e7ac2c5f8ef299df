import hashlib
from pathlib import Path
from typing import Any, ClassVar

from modules.util.config.BaseConfig import VERSION_KEY, BaseConfig
from modules.util.config.field_type import option_of
from modules.util.config.migration import TRAIN_MIGRATIONS
from modules.util.config.option import nested, option
from modules.util.config.topics.AdapterOptions import AdapterOptions
from modules.util.config.topics.BackupOptions import BackupOptions
from modules.util.config.topics.DataOptions import DataOptions
from modules.util.config.topics.LossOptions import LossOptions
from modules.util.config.topics.ModelOptions import ModelOptions
from modules.util.config.topics.NoiseOptions import NoiseOptions
from modules.util.config.topics.RunOptions import RunOptions
from modules.util.config.topics.SamplingOptions import SamplingOptions
from modules.util.config.topics.TrainingOptions import TrainingOptions
from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig
from modules.util.config.write_json import canonical_json, write_json
from modules.util.enum.DataType import DataType
from modules.util.enum.OFTScaleMode import OFTScaleMode
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.PeftType import PeftType


# pydantic collects fields from the last base to the first
class TrainConfig(
    BackupOptions,
    SamplingOptions,
    AdapterOptions,
    LossOptions,
    NoiseOptions,
    TrainingOptions,
    DataOptions,
    ModelOptions,
    RunOptions,
):
    """Everything that a training run needs to know."""

    FORMAT_VERSION: ClassVar[int | None] = 11
    MIGRATIONS: ClassVar = TRAIN_MIGRATIONS

    optimizer: TrainOptimizerConfig = nested(
        TrainOptimizerConfig, "Optimizer", "The optimizer and its options.", OptionGroup.OPTIMIZER
    )
    optimizer_defaults: dict[str, TrainOptimizerConfig] = option(
        dict,
        "Optimizer memory",
        "Options that the GUI remembers for each optimizer, by its name.",
        OptionGroup.OPTIMIZER,
        advanced=True,
        affects_result=False,
    )

    @classmethod
    def upgrade(cls, data: dict) -> dict:
        """Brings older JSON to the current version. OFT in files of OneTrainer means OneTrainer's scale and kernels."""
        upgraded = super().upgrade(data)
        if VERSION_KEY in data and upgraded.get("oft_scaled") is True:
            upgraded.setdefault("oft_scale_mode", OFTScaleMode.ROW.value)
        # `oft_side` is ours alone, and stands in every whole file of ours: older ones mean channels
        theirs = VERSION_KEY in data and "oft_side" not in data
        if theirs and upgraded.get("peft_type") == PeftType.OFT_2.value:
            upgraded.setdefault("oft_kernels", True)
        return upgraded

    def component_weight_dtype(self, name: str) -> DataType:
        """The number format of the frozen weights of a component, as `unet`."""
        own = getattr(self, name).weight_dtype
        return self.weight_dtype if own == DataType.NONE else own

    def save(self, path: str | Path, secrets: bool = False, sparse: bool = False) -> None:
        """Writes the config in one step; reading the file gives an equal config.

        Args:
            path: the file, replaced if it exists.
            secrets: includes tokens. Only for a file that the user saves for themselves.
            sparse: writes only what differs from the defaults, as presets do.
        """
        write_json(path, self.to_dict(secrets, sparse))

    def config_hash(self) -> str:
        """sha256 of every option that the trained weights depend on.

        Left out are folders, outputs, samples, backups, logs, secrets, remembered optimizers and unknown keys, that is
        every option declared with `affects_result=False`. Concepts count where they stand: pack the config first if
        the content of its concept file is to count instead of the file's name.
        """
        data = _result_dict(self)
        if self.concepts is not None:
            data.pop("concept_file_name")
        return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def _result_dict(config: BaseConfig) -> dict[str, Any]:
    data, written = {}, config.to_dict(secrets=False)
    for name in type(config).model_fields:
        if not option_of(type(config), name).affects_result:
            continue
        value = getattr(config, name)
        if isinstance(value, BaseConfig):
            data[name] = _result_dict(value)
        elif isinstance(value, list):
            data[name] = [_result_dict(item) if isinstance(item, BaseConfig) else item for item in value]
        else:
            data[name] = written[name]
    return data
