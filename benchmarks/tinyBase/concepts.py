"""The concepts that a tiny base can be taught, by the name that the command takes."""

from benchmarks.tinyBase.boat import BOAT_CONCEPT
from benchmarks.tinyBase.concept import Concept
from benchmarks.tinyBase.lumo import LUMO_CONCEPT

CONCEPTS: dict[str, Concept] = {concept.object: concept for concept in (LUMO_CONCEPT, BOAT_CONCEPT)}
# that of the README and of the presets
FIRST = LUMO_CONCEPT.object
