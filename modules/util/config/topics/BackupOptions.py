from functools import partial

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.TimeUnit import TimeUnit

G = OptionGroup.BACKUP
# the trained weights do not depend on them
basic = partial(option, group=G, affects_result=False)


class BackupOptions(BaseConfig):
    """When the run stores itself for resuming, and when it saves models on the way."""

    backup_after: int = basic(
        30,
        "Backup every",
        "Interval between two backups, from which a run can be resumed.",
        ge=0,
        unit="backup_after_unit",
    )
    backup_after_unit: TimeUnit = basic(TimeUnit.MINUTE, "Backup unit", "What `backup_after` counts.")
    rolling_backup: bool = basic(
        False, "Rolling backups", "Removes older backups when there are more than `rolling_backup_count`."
    )
    rolling_backup_count: int = basic(
        3,
        "Backups kept",
        "Number of backups that stay.",
        ge=1,
        unit="backups",
        visible_when={"rolling_backup": (True,)},
    )
    backup_before_save: bool = basic(
        True, "Backup before saving", "Makes a backup before the finished model is written."
    )
    save_every: int = basic(
        0, "Save every", "Interval between two models that are saved during the run.", ge=0, unit="save_every_unit"
    )
    save_every_unit: TimeUnit = basic(TimeUnit.NEVER, "Save unit", "What `save_every` counts.")
    save_skip_first: int = basic(
        0,
        "First save after",
        "No models are saved before this much of the run is over.",
        ge=0,
        unit="save_every_unit",
        advanced=True,
    )
    save_filename_prefix: str = basic("", "File name prefix", "Start of the names of those models.")
