from functools import partial
from typing import Any, ClassVar

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.ConceptImageConfig import ConceptImageConfig
from modules.util.config.ConceptTextConfig import ConceptTextConfig
from modules.util.config.migration import CONCEPT_MIGRATIONS
from modules.util.config.option import nested, option
from modules.util.enum.BalancingStrategy import BalancingStrategy
from modules.util.enum.ConceptType import ConceptType
from modules.util.enum.OptionGroup import OptionGroup

G = OptionGroup.CONCEPT
basic = partial(option, group=G)
advanced = partial(option, group=G, advanced=True)


class ConceptConfig(BaseConfig):
    """A folder of training images and how it is used."""

    FORMAT_VERSION: ClassVar[int | None] = 2
    MIGRATIONS: ClassVar = CONCEPT_MIGRATIONS

    image: ConceptImageConfig = nested(ConceptImageConfig, "Images", "How the images are varied.", G)
    text: ConceptTextConfig = nested(ConceptTextConfig, "Captions", "Where captions come from, how they are varied.", G)
    name: str = basic("", "Name", "A name for lists and messages. Empty: the folder's name.", affects_result=False)
    path: str = basic("", "Folder", "The folder that holds the images.", path="folder")
    seed: int = advanced(
        42, "Seed", "Start of this concept's random variations. The same seed gives the same crops and captions."
    )
    enabled: bool = basic(True, "Enabled", "Uses the concept; otherwise it is skipped.")
    type: ConceptType = basic(
        ConceptType.STANDARD,
        "Type",
        "STANDARD: trained; VALIDATION: only measured; PRIOR_PREDICTION: trained toward what the model predicts "
        "without the adapters, so that it keeps what it knows of such images. Only with adapters.",
    )
    include_subdirectories: bool = basic(False, "Include subfolders", "Takes images of all folders below, too.")
    image_variations: int = basic(
        1,
        "Image variations",
        "Differently varied versions of each image that are cached. More variety, larger cache.",
        ge=1,
        le=1_000_000,
        unit="versions",
    )
    text_variations: int = basic(
        1,
        "Text variations",
        "Differently varied versions of each caption that are cached.",
        ge=1,
        le=1_000_000,
        unit="versions",
    )
    balancing: float = basic(
        1.0,
        "Balancing",
        "How much of the concept an epoch takes; the strategy says in what unit.",
        ge=0,
        unit="passes or samples",
    )
    balancing_strategy: BalancingStrategy = basic(
        BalancingStrategy.REPEATS,
        "Balancing strategy",
        "REPEATS: passes over the concept per epoch; SAMPLES: images drawn per epoch.",
    )
    loss_weight: float = basic(1.0, "Loss weight", "Multiplies the loss of this concept's images.", ge=0)
    concept_stats: dict[str, Any] = advanced(
        dict, "Statistics", "Counts that OneTrainer's GUI stores; kept as they are.", affects_result=False
    )
