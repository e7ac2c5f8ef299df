import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from modules.util.config.patterns import PatternError, find_pattern, split_patterns
from modules.util.config.QuantizationConfig import QuantizationConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

SHOWN_NAMES = 6


@dataclass(frozen=True)
class LayerFilter:
    """Which layers are chosen, as `layer_filter` says.

    Attributes:
        patterns: a layer is selected if any of them is part of its name, or is found in it as a regular expression.
            None at all selects every layer.
        regex: reads the patterns as regular expressions.
        notes: what the user should know about how the config was read.
        key: the option that it comes from, for messages.
    """

    patterns: tuple[str, ...] = ()
    regex: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False)
    key: str = field(default="layer_filter", compare=False)

    def __post_init__(self) -> None:
        for pattern in self.patterns if self.regex else ():
            try:
                find_pattern(pattern)
            except PatternError as error:
                raise UserError(
                    f"{self.key}: {pattern!r} is not a regular expression that can be used ({error}). "
                    f"Mend it, or set {self.key}_regex to false to search for plain text."
                ) from error

    @classmethod
    def from_config(
        cls, config: TrainConfig | QuantizationConfig, presets: Mapping[str, Sequence[str]], key: str = "layer_filter"
    ) -> "LayerFilter":
        """The filter of a config.

        As in OneTrainer, `layer_filter` alone decides: empty means all layers, whatever `layer_filter_preset` says.
        The preset's name only says where the filter came from; where the two disagree, a note tells.

        Args:
            config: read for `layer_filter`, `layer_filter_regex` and `layer_filter_preset`.
            presets: the family's selections, name -> patterns.
            key: the option, for messages.
        """
        split = split_patterns if config.layer_filter_regex else _split
        patterns = tuple(split(config.layer_filter))
        name = config.layer_filter_preset
        notes = []
        if name in presets and name != "custom" and tuple(presets[name]) != patterns:
            meant = ",".join(presets[name])
            used = "all layers are" if not patterns else f'"{config.layer_filter}" is'
            notes.append(
                f"layer_filter_preset is {name}, but layer_filter decides: {used} trained. "
                f'For the preset, set layer_filter to "{meant}".'
            )
        return cls(patterns, config.layer_filter_regex, tuple(notes), key)

    @classmethod
    def exactly(cls, names: Iterable[str]) -> "LayerFilter":
        """Selects the layers of these very names."""
        return cls((f"^(?:{'|'.join(map(re.escape, names))})$",), regex=True)

    def matches(self, name: str) -> bool:
        """Whether the layer of this name is chosen."""
        return not self.patterns or any(self._found(pattern, name) for pattern in self.patterns)

    def select(self, names: Iterable[str], component: str) -> list[str]:
        """The selected ones of `names`, in their order.

        Raises:
            UserError: a pattern selects nothing, so it is misspelt or meant for another model.
        """
        names = list(names)
        for pattern in self.patterns:
            if not any(self._found(pattern, name) for name in names):
                shown = ", ".join(self._examples(pattern, names)) or "none"
                raise UserError(
                    f"{self.key}: {pattern!r} is in no layer name of {component}. "
                    f"Mend or remove it. Its {len(names)} layers are named like: {shown}."
                )
        return [name for name in names if self.matches(name)]

    def _found(self, pattern: str, name: str) -> bool:
        if not self.regex:
            return pattern in name
        try:
            return find_pattern(pattern).search(name)
        except PatternError as error:
            raise UserError(f"{self.key}: {pattern!r}: {error}.") from error

    @staticmethod
    def _examples(pattern: str, names: list[str]) -> list[str]:
        """Layer names that are spelt like the pattern, then others from all over the model."""
        near = difflib.get_close_matches(pattern, names, n=2, cutoff=0.3)
        spread = names[:: max(1, len(names) // SHOWN_NAMES)]
        return list(dict.fromkeys([*near, *spread]))[:SHOWN_NAMES]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
