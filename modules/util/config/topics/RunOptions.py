from functools import partial

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import nested, option
from modules.util.config.SecretsConfig import SecretsConfig
from modules.util.enum.ConfigPart import ConfigPart
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.RunLogger import RunLogger
from modules.util.enum.TimeUnit import TimeUnit
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.enum.WandbMode import WandbMode

G = OptionGroup.GENERAL
# the trained weights do not depend on them
run_option = partial(option, group=G, affects_result=False)
advanced_run_option = partial(option, group=G, affects_result=False, advanced=True)
logging_option = partial(option, group=OptionGroup.LOGGING, affects_result=False)
advanced_logging_option = partial(option, group=OptionGroup.LOGGING, affects_result=False, advanced=True)
other_logging_option = partial(logging_option, visible_when={"logger": (RunLogger.WANDB, RunLogger.TRACKIO)})
validation_option = partial(option, group=OptionGroup.VALIDATION, affects_result=False)
validated_option = partial(validation_option, visible_when={"validation": (True,)})


class RunOptions(BaseConfig):
    """What kind of run it is, its folders, seed, logs and validation."""

    training_method: TrainingMethod = run_option(
        TrainingMethod.FINE_TUNE,
        "Training method",
        "LORA trains a small adapter (of the kind `peft_type`), FINE_TUNE the "
        "model itself, EMBEDDING only token vectors, FINE_TUNE_VAE the image decoder.",
        affects_result=True,
    )
    seed: int = run_option(
        42,
        "Seed",
        "Start of everything random: order, noise, initialisation. The same config and seed give the same weights, on "
        "a GPU only with `deterministic`.",
        ge=0,
        le=2**63 - 1,
        affects_result=True,
    )
    workspace_dir: str = run_option(
        "workspace/run",
        "Workspace folder",
        "Folder for backups, samples and logs of the run. Give each run its own.",
        path="folder",
    )
    cache_dir: str = run_option(
        "workspace-cache/run",
        "Cache folder",
        "Folder for encoded images and captions. Runs on the same data may share it.",
        path="folder",
    )
    continue_last_backup: bool = run_option(
        False, "Continue last backup", "Resumes from the newest intact backup in the workspace, if there is one."
    )
    prevent_overwrites: bool = run_option(
        False, "Prevent overwrites", "Refuses to start if the output file already exists."
    )
    include_train_config: ConfigPart = advanced_run_option(
        ConfigPart.NONE,
        "Config in the model file",
        "How much of this config is stored in the saved model: nothing, "
        "the settings, or also concepts and samples. Secrets never are.",
    )
    only_cache: bool = advanced_run_option(False, "Only cache", "Builds the cache and stops before training.")
    huggingface_cache_dir: str = advanced_run_option(
        "", "Hub cache folder", "Folder for models from the Hugging Face hub. Empty: the library's own.", path="folder"
    )
    offline_mode: bool = run_option(False, "Offline", "Never asks the network; every model must be on this machine.")
    debug_mode: bool = advanced_run_option(False, "Debug mode", "Writes intermediate images of each step. Slow.")
    debug_dir: str = advanced_run_option(
        "debug",
        "Debug folder",
        "Folder for what debug mode writes.",
        path="folder",
        visible_when={"debug_mode": (True,)},
    )

    tensorboard: bool = logging_option(
        True, "TensorBoard", "Starts TensorBoard beside the run. Logs are written in any case."
    )
    tensorboard_expose: bool = advanced_logging_option(
        False, "Expose TensorBoard", "Lets other computers in the network open TensorBoard."
    )
    tensorboard_port: int = advanced_logging_option(
        6006, "TensorBoard port", "Network port of TensorBoard.", ge=1, le=65535
    )
    logger: RunLogger = logging_option(
        RunLogger.NONE,
        "Logger beside TensorBoard",
        "WANDB logs the run to Weights & Biases, TRACKIO to trackio on this machine: curves, samples and this config "
        "without access tokens. Each needs its package, which is installed by hand.",
    )
    logger_project: str = other_logging_option("scaled-trainer", "Project", "Runs of one project stand together there.")
    logger_run_name: str = other_logging_option(
        "", "Run name", "Name of the run there. Empty: the name of the output file."
    )
    wandb_mode: WandbMode = logging_option(
        WandbMode.ONLINE,
        "Mode of wandb",
        "ONLINE sends everything at once. OFFLINE keeps it in the workspace, in wandb; `wandb sync` sends it later. "
        "With `offline_mode` it is always OFFLINE.",
        visible_when={"logger": (RunLogger.WANDB,)},
    )

    validation: bool = validation_option(
        False,
        "Validation",
        "Measures the loss on VALIDATION concepts with fixed noise and timesteps, which shows overfitting.",
    )
    validate_after: int = validated_option(
        1, "Validate every", "Interval between two validations.", ge=0, unit="validate_after_unit"
    )
    validate_after_unit: TimeUnit = validated_option(TimeUnit.EPOCH, "Validation unit", "What `validate_after` counts.")

    secrets: SecretsConfig = nested(
        SecretsConfig,
        "Secrets",
        "Access tokens. Kept apart from everything that is written beside a model.",
        OptionGroup.SECRETS,
        {"affects_result": False, "secret": True},
    )
