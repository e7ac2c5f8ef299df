"""What is trained to measure forgetting: the demo concept without its ordinary scenes, which the base then may forget.

- forgetting: a training in which the base model forgets.
- sizes: a longer one in which the concept is overfitted, so that decay helps on pictures that were held out.
- prior: the concept alone, and beside ordinary scenes as prior predictions or as pictures to train on.
- quick …: small ones of all, to see that everything works.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.transfer.tasks import ROOT

FORGETTING, SIZES, PRIOR = QUESTIONS = ("forgetting", "sizes", "prior")
QUICK = "quick "
CONCEPT_FOLDER = ROOT / "training_concepts" / "tiny_concept"
TRAINED_FOLDERS = ("lumo", "vintage")
ORDINARY_FOLDER = "ordinary"
# half of its pictures an epoch, which are as many as those of the concept
ORDINARY_PASSES = 0.5
# what is trained beside the concept -> the type of the ordinary scenes; "" where there are none
ALONE, BESIDE_PRIOR, BESIDE_PICTURES = "alone", "prior predictions", "pictures"
BESIDE: Mapping[str, str] = {ALONE: "", BESIDE_PRIOR: "PRIOR_PREDICTION", BESIDE_PICTURES: "STANDARD"}


@dataclass(frozen=True)
class TaskSize:
    """How much is trained and measured.

    Attributes:
        steps: of each training of the concept alone, 8 images each.
        ordinary: scenes that are drawn anew to measure what is kept.
        held_out: pictures of the concept that no step saw.
        draws: of noise and timestep for each picture that is measured.
        scenes: prompts of ordinary scenes that are sampled where pictures are wanted.
        lumos, styles: the same of the concept.
        sampling_steps: of each sampled picture.
    """

    steps: int
    ordinary: int
    held_out: int
    draws: int
    scenes: int
    lumos: int
    styles: int
    sampling_steps: int


TASKS: Mapping[str, TaskSize] = {
    FORGETTING: TaskSize(160, 64, 48, 2, 48, 24, 16, 20),
    QUICK + FORGETTING: TaskSize(8, 8, 8, 1, 4, 2, 2, 4),
    PRIOR: TaskSize(120, 64, 48, 2, 40, 16, 12, 15),
    QUICK + PRIOR: TaskSize(8, 8, 8, 1, 4, 2, 2, 4),
    SIZES: TaskSize(240, 16, 48, 2, 0, 0, 0, 0),
    QUICK + SIZES: TaskSize(8, 8, 8, 1, 0, 0, 0, 0),
}
