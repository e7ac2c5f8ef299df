from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.TimeUnit import TimeUnit

G = OptionGroup.BACKUP


class BackupOptions(BaseConfig):
    """When the run stores itself for resuming, and when it saves models on the way."""

    backup_after: int = option(
        30,
        "Backup every",
        "Interval between two backups, from which a run can be resumed.",
        G,
        ge=0,
        unit="backup_after_unit",
        affects_result=False,
    )
    backup_after_unit: TimeUnit = option(
        TimeUnit.MINUTE, "Backup unit", "What `backup_after` counts.", G, affects_result=False
    )
    rolling_backup: bool = option(
        False,
        "Rolling backups",
        "Removes older backups when there are more than `rolling_backup_count`.",
        G,
        affects_result=False,
    )
    rolling_backup_count: int = option(
        3,
        "Backups kept",
        "Number of backups that stay.",
        G,
        ge=1,
        unit="backups",
        visible_when={"rolling_backup": (True,)},
        affects_result=False,
    )
    backup_before_save: bool = option(
        True, "Backup before saving", "Makes a backup before the finished model is written.", G, affects_result=False
    )
    save_every: int = option(
        0,
        "Save every",
        "Interval between two models that are saved during the run.",
        G,
        ge=0,
        unit="save_every_unit",
        affects_result=False,
    )
    save_every_unit: TimeUnit = option(
        TimeUnit.NEVER, "Save unit", "What `save_every` counts.", G, affects_result=False
    )
    save_skip_first: int = option(
        0,
        "First save after",
        "No models are saved before this much of the run is over.",
        G,
        ge=0,
        unit="save_every_unit",
        affects_result=False,
        advanced=True,
    )
    save_filename_prefix: str = option(
        "", "File name prefix", "Start of the names of those models.", G, affects_result=False
    )
