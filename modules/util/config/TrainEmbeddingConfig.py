from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.TimeUnit import TimeUnit


class TrainEmbeddingConfig(BaseConfig):
    """A textual inversion embedding that is trained or loaded."""

    uuid: str = option(
        "",
        "Identifier",
        "Tells embeddings apart in backups. Empty: the placeholder serves.",
        OptionGroup.EMBEDDING,
        advanced=True,
    )
    model_name: str = option(
        "",
        "File",
        "An embedding file to start from. Empty: starts from `initial_embedding_text`.",
        OptionGroup.EMBEDDING,
        path="file",
    )
    placeholder: str = option(
        "<embedding>",
        "Placeholder",
        "The word in captions and prompts that stands for the embedding.",
        OptionGroup.EMBEDDING,
    )
    train: bool = option(True, "Train", "Trains this embedding; otherwise it is only used.", OptionGroup.EMBEDDING)
    stop_training_after: int | None = option(
        None,
        "Stop training after",
        "Freezes the embedding when this much of the run is over. null: never.",
        OptionGroup.EMBEDDING,
        ge=0,
        unit="stop_training_after_unit",
        advanced=True,
    )
    stop_training_after_unit: TimeUnit = option(
        TimeUnit.NEVER, "Stop training unit", "What `stop_training_after` counts.", OptionGroup.EMBEDDING, advanced=True
    )
    token_count: int | None = option(
        1,
        "Token count",
        "Number of token vectors. More can hold more detail and overfit sooner. null: as many as the initial text has.",
        OptionGroup.EMBEDDING,
        ge=1,
        le=1000,
        unit="tokens",
    )
    initial_embedding_text: str = option(
        "*",
        "Initial text",
        "The embedding starts from the vectors of these words. A word near the concept learns faster.",
        OptionGroup.EMBEDDING,
    )
    is_output_embedding: bool = option(
        False,
        "Output embedding",
        "Trains vectors behind the text encoder instead of in front of it.",
        OptionGroup.EMBEDDING,
        advanced=True,
    )
