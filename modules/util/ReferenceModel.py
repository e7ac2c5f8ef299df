from collections.abc import Mapping
from dataclasses import dataclass

from modules.util.AdapterNaming import AdapterNaming

from torch import nn


@dataclass(frozen=True)
class ReferenceModel:
    """A base model as far as adapter files are concerned: its layers, and how files call them.

    Attributes:
        name: for messages, for example "Stable Diffusion 1.x" or the path of a base model.
        components: name in the config -> module, with weights or on the meta device.
        naming: of their layers.
        architecture: of the Stability model spec, for example "stable-diffusion-v1"; may be empty.
        base_version: kohya's name, for example "sd_v1"; may be empty.
    """

    name: str
    components: Mapping[str, nn.Module]
    naming: AdapterNaming
    architecture: str = ""
    base_version: str = ""

    @property
    def has_weights(self) -> bool:
        """Whether the weights are there, not only the shapes."""
        return not any(tensor.is_meta for module in self.components.values() for tensor in module.parameters())
