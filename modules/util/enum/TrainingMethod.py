from enum import StrEnum


class TrainingMethod(StrEnum):
    """What is trained: all weights, an adapter, an embedding, or the VAE."""

    FINE_TUNE = "FINE_TUNE"
    LORA = "LORA"
    EMBEDDING = "EMBEDDING"
    FINE_TUNE_VAE = "FINE_TUNE_VAE"
