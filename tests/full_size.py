"""Descriptions of the published models, which several folders of tests read."""

from functools import cache

from modules.model.reference_naming import standard_models
from modules.util.ReferenceModel import ReferenceModel


@cache
def full_size_models() -> tuple[ReferenceModel, ...]:
    """Those of all families, on the meta device. They take seconds to build; tests must not change them."""
    return tuple(standard_models())
