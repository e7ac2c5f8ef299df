from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import nested, option
from modules.util.config.SecretsConfig import SecretsConfig
from modules.util.enum.ConfigPart import ConfigPart
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.TimeUnit import TimeUnit
from modules.util.enum.TrainingMethod import TrainingMethod

G = OptionGroup.GENERAL


class RunOptions(BaseConfig):
    """What kind of run it is, its folders, seed, logs and validation."""

    training_method: TrainingMethod = option(
        TrainingMethod.FINE_TUNE,
        "Training method",
        "LORA trains a small adapter (of the kind `peft_type`), FINE_TUNE the "
        "model itself, EMBEDDING only token vectors, FINE_TUNE_VAE the image decoder.",
        G,
    )
    seed: int = option(
        42,
        "Seed",
        "Start of everything random: order, noise, initialisation. The same config and seed give the same weights.",
        G,
        ge=0,
        le=2**63 - 1,
    )
    workspace_dir: str = option(
        "workspace/run",
        "Workspace folder",
        "Folder for backups, samples and logs of the run. Give each run its own.",
        G,
        path="folder",
        affects_result=False,
    )
    cache_dir: str = option(
        "workspace-cache/run",
        "Cache folder",
        "Folder for encoded images and captions. Runs on the same data may share it.",
        G,
        path="folder",
        affects_result=False,
    )
    continue_last_backup: bool = option(
        False,
        "Continue last backup",
        "Resumes from the newest intact backup in the workspace, if there is one.",
        G,
        affects_result=False,
    )
    prevent_overwrites: bool = option(
        False, "Prevent overwrites", "Refuses to start if the output file already exists.", G, affects_result=False
    )
    include_train_config: ConfigPart = option(
        ConfigPart.NONE,
        "Config in the model file",
        "How much of this config is stored in the saved model: nothing, "
        "the settings, or also concepts and samples. Secrets never are.",
        G,
        affects_result=False,
        advanced=True,
    )
    only_cache: bool = option(
        False, "Only cache", "Builds the cache and stops before training.", G, affects_result=False, advanced=True
    )
    huggingface_cache_dir: str = option(
        "",
        "Hub cache folder",
        "Folder for models from the Hugging Face hub. Empty: the library's own.",
        G,
        path="folder",
        affects_result=False,
        advanced=True,
    )
    offline_mode: bool = option(
        False, "Offline", "Never asks the network; every model must be on this machine.", G, affects_result=False
    )
    debug_mode: bool = option(
        False, "Debug mode", "Writes intermediate images of each step. Slow.", G, affects_result=False, advanced=True
    )
    debug_dir: str = option(
        "debug",
        "Debug folder",
        "Folder for what debug mode writes.",
        G,
        path="folder",
        affects_result=False,
        visible_when={"debug_mode": (True,)},
        advanced=True,
    )

    tensorboard: bool = option(
        True,
        "TensorBoard",
        "Starts TensorBoard beside the run. Logs are written in any case.",
        OptionGroup.LOGGING,
        affects_result=False,
    )
    tensorboard_expose: bool = option(
        False,
        "Expose TensorBoard",
        "Lets other computers in the network open TensorBoard.",
        OptionGroup.LOGGING,
        affects_result=False,
        advanced=True,
    )
    tensorboard_port: int = option(
        6006,
        "TensorBoard port",
        "Network port of TensorBoard.",
        OptionGroup.LOGGING,
        ge=1,
        le=65535,
        affects_result=False,
        advanced=True,
    )

    validation: bool = option(
        False,
        "Validation",
        "Measures the loss on VALIDATION concepts with fixed noise and timesteps, which shows overfitting.",
        OptionGroup.VALIDATION,
        affects_result=False,
    )
    validate_after: int = option(
        1,
        "Validate every",
        "Interval between two validations.",
        OptionGroup.VALIDATION,
        ge=0,
        unit="validate_after_unit",
        visible_when={"validation": (True,)},
        affects_result=False,
    )
    validate_after_unit: TimeUnit = option(
        TimeUnit.EPOCH,
        "Validation unit",
        "What `validate_after` counts.",
        OptionGroup.VALIDATION,
        visible_when={"validation": (True,)},
        affects_result=False,
    )

    secrets: SecretsConfig = nested(
        SecretsConfig,
        "Secrets",
        "Access tokens. Kept apart from everything that is written beside a model.",
        OptionGroup.SECRETS,
        {"affects_result": False, "secret": True},
    )
