"""What is allowed in a concept and hardly ever meant, with what to do about it."""

from dataclasses import dataclass

from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.field_type import option_of
from modules.util.enum.ConceptType import ConceptType
from modules.util.texts import tr
from modules.viewModel.ConceptModel import title_of
from modules.viewModel.FieldHints import FieldHints, Note

# option of a random change -> the one that says how much, 0 of which changes nothing; "": it has none
RANDOM_CHANGES = {
    "enable_random_flip": "",
    "enable_random_rotate": "random_rotate_max_angle",
    "enable_random_brightness": "random_brightness_max_strength",
    "enable_random_contrast": "random_contrast_max_strength",
    "enable_random_saturation": "random_saturation_max_strength",
    "enable_random_hue": "random_hue_max_strength",
    "enable_random_circular_mask_shrink": "",
    "enable_random_mask_rotate_crop": "",
}
VARIATIONS = "image_variations"


@dataclass(frozen=True)
class ConceptAdvice:
    """What to change in one of the concepts of a config.

    Attributes:
        place: of the concept in the list.
        text: for people: what happens now, and what to do.
    """

    place: int
    text: str


def random_changes(concept: ConceptConfig) -> list[str]:
    """Titles of what is changed at random in the images of a concept; a crop that moves is in each and not named."""
    image = concept.image
    on = [
        name
        for name, amount in RANDOM_CHANGES.items()
        if getattr(image, name) and (not amount or getattr(image, amount))
    ]
    return [tr(option_of(type(image), name).title) for name in on]


def one_variation(concept: ConceptConfig) -> str:
    """That changes at random come with a single variation, and what to do; empty if that is not so."""
    changes = random_changes(concept)
    # validation takes the first variation in any case
    if concept.image_variations != 1 or not changes or concept.type == ConceptType.VALIDATION:
        return ""
    return tr(
        "With 1 image variation, what is random here ({changes}) is drawn once for each image and stays the same in "
        "every epoch. For changing images set it to the number of epochs, or to about 10; each one is encoded and kept "
        "on the disk.",
        changes=", ".join(changes),
    )


def advice(concepts: list[ConceptConfig]) -> list[ConceptAdvice]:
    """What to change in the concepts that are trained."""
    return [
        ConceptAdvice(place, f"{title_of(concept)}: {text}")
        for place, concept in enumerate(concepts)
        if concept.enabled and (text := one_variation(concept))
    ]


class ConceptHints(FieldHints):
    """The same for a concept: a warning at the variations where one is too few."""

    def note(self, path: str) -> Note:
        """What a person should know of the value of now."""
        if path != VARIATIONS:
            return super().note(path)
        assert isinstance(self.form.config, ConceptConfig)
        return Note(one_variation(self.form.config), warns=True)
