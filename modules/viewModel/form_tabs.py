"""In which tab each group of options stands."""

from collections.abc import Iterable

from modules.util.enum.OptionGroup import OptionGroup as G
from modules.viewModel.FormField import FormSection

GENERAL, OPTIMIZER = "general", "optimizer"

TAB_GROUPS: dict[str, tuple[G, ...]] = {
    GENERAL: (G.GENERAL, G.VALIDATION, G.LOGGING, G.SECRETS),
    "model": (G.MODEL, G.COMPONENTS),
    "data": (G.DATA,),
    "training": (G.TRAINING, G.SCHEDULE, G.MEMORY, G.NOISE, G.LOSS, G.LAYERS, G.MASK),
    "sampling": (G.SAMPLING,),
    "backup": (G.BACKUP,),
    "adapter": (G.ADAPTER,),
    "embeddings": (G.EMBEDDING,),
    OPTIMIZER: (G.OPTIMIZER, G.OPTIMIZER_FEATURES, G.OPTIMIZER_MUON, G.OPTIMIZER_LIBRARY),
}
"""Tab -> groups, in their order. A group that stands nowhere here is shown in the general tab."""


def tab_of(group: G) -> str:
    """The tab of a group; `optimizer` is the optimizer window."""
    return next((tab for tab, groups in TAB_GROUPS.items() if group in groups), GENERAL)


def sections_of(tab: str, sections: Iterable[FormSection]) -> list[FormSection]:
    """The sections of a tab, in the order of its groups."""
    order = TAB_GROUPS.get(tab, ())
    found = [section for section in sections if tab_of(section.group) == tab]
    return sorted(found, key=lambda section: order.index(section.group) if section.group in order else len(order))
