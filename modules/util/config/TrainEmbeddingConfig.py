from functools import partial

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.TimeUnit import TimeUnit

basic = partial(option, group=OptionGroup.EMBEDDING)
advanced = partial(option, group=OptionGroup.EMBEDDING, advanced=True)


class TrainEmbeddingConfig(BaseConfig):
    """A textual inversion embedding that is trained or loaded."""

    uuid: str = advanced("", "Identifier", "Tells embeddings apart in backups. Empty: the placeholder serves.")
    model_name: str = basic(
        "", "File", "An embedding file to start from. Empty: starts from `initial_embedding_text`.", path="file"
    )
    placeholder: str = basic(
        "<embedding>", "Placeholder", "The word in captions and prompts that stands for the embedding."
    )
    train: bool = basic(True, "Train", "Trains this embedding; otherwise it is only used.")
    stop_training_after: int | None = advanced(
        None,
        "Stop training after",
        "Freezes the embedding when this much of the run is over. null: never.",
        ge=0,
        unit="stop_training_after_unit",
    )
    stop_training_after_unit: TimeUnit = advanced(
        TimeUnit.NEVER, "Stop training unit", "What `stop_training_after` counts."
    )
    token_count: int | None = basic(
        1,
        "Token count",
        "Number of token vectors. More can hold more detail and overfit sooner. null: as many as the initial text has.",
        ge=1,
        le=1000,
        unit="tokens",
    )
    initial_embedding_text: str = basic(
        "*",
        "Initial text",
        "The embedding starts from the vectors of these words. A word near the concept learns faster.",
    )
    is_output_embedding: bool = advanced(
        False, "Output embedding", "Trains vectors behind the text encoder instead of in front of it."
    )
