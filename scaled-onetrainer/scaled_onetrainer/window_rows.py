"""What the optimizer window shows for our optimizers: sections of rows, in words of the window. Needs no toolkit."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scaled_onetrainer.fields import ENCODER_RATES, as_field, is_switch, key_of, words_of
from scaled_onetrainer.members import MEMBERS
from scaled_optim.allowed_values import Choice, Numbers, Options, as_json
from scaled_optim.options import DECLARED, FEATURES, GENERAL, MUON, PRODIGY
from scaled_optim.rules.registry import RULES

SWITCH, ENTRY, DROPDOWN, DIALOG = "switch", "entry", "dropdown", "dialog"
TITLES = {GENERAL: "General", FEATURES: "Features", MUON: "Muon", PRODIGY: "Prodigy"}
RUN, ADVANCED = "Run", "Advanced"
# how a step is run; no rule has these
RUN_OPTIONS: dict[str, tuple[str, str, bool]] = {
    "fused_back_pass": (
        "Fused backward pass",
        "Steps each parameter as soon as its gradient is there: much less memory. Not with gradient accumulation. Full "
        "fine-tuning with offloaded layers needs it.",
        False,
    ),
    "compile": ("Compiled steps", "Compiles the steps with torch.compile: a slow start, then faster steps.", False),
    "fused_kernels": (
        "Fused kernels",
        "On a GPU with Triton: steps by kernels of our own, each tried beside torch's operations first. Off: torch's "
        "operations.",
        True,
    ),
}
# of the auxiliary Adam, which OneTrainer has a rate for in each text encoder
ENCODER_ROWS = dict(zip(ENCODER_RATES, ("Adam rate, text encoder 1", "Adam rate, text encoder 2"), strict=True))
# help that would say what only holds outside of this window
OWN_HELP = {
    "orthogonal_gradient": "Removes from the gradient what only lengthens the weights: over the whole tensor, per "
    "rank, or for rows and columns in turn.",
    "rms_rescaling": "Scales steps to the size of Adam's, so that Adam's learning rates fit. auto: on, unless scaled "
    "steps set the size.",
    "muon_adam_lr": "Learning rate of the auxiliary Adam. null: Muon's own.",
    "muon_adam_config": "Options of the Adam that trains what Muon does not, in a window of their own. What is not "
    "changed there follows Muon's general options, or is Adam's default.",
}
CODE, NULL, FIRST_NULL = re.compile(r"`(\w+)`"), re.compile(r"\bnull\b"), re.compile(r"(^|\. )null\b")


@dataclass(frozen=True)
class Row:
    """One option in the window.

    Attributes:
        key: in the config.
        title: the label.
        help: what the label's tooltip says.
        widget: SWITCH, ENTRY, DROPDOWN or DIALOG, which is a button that opens a window.
        values: of a dropdown, as the config holds them.
        default: as the config holds it.
        check: takes a text, and gives what is wrong with it or None.
    """

    key: str
    title: str
    help: str
    widget: str
    values: tuple[str, ...]
    default: Any
    check: Callable[[str], str | None] | None


@dataclass(frozen=True)
class Section:
    """Rows under one heading."""

    title: str
    rows: tuple[Row, ...]


def sections_of(member: str) -> list[Section]:
    """The rows of one of our optimizers: its rule's options by section, how it runs, and what few people change.

    Args:
        member: name in OneTrainer.
    """
    defaults = RULES[MEMBERS[member]].defaults
    run = tuple(
        Row(key, title, f"{text} Default: {_shown(default)}.", SWITCH, (), default, None)
        for key, (title, text, default) in RUN_OPTIONS.items()
    )
    return _sections(defaults, run)


def option_sections(defaults: Mapping[str, Any]) -> list[Section]:
    """The rows of options with these defaults, by section, and what few people change last."""
    return _sections(defaults, ())


def _sections(defaults: Mapping[str, Any], run: tuple[Row, ...]) -> list[Section]:
    plain = [Section(title, tuple(_rows(defaults, section, False))) for section, title in TITLES.items()]
    advanced = tuple(row for section in TITLES for row in _rows(defaults, section, True))
    found = [*plain, Section(RUN, run), Section(ADVANCED, advanced)]
    return [section for section in found if section.rows]


def _rows(defaults: Mapping[str, Any], section: str, advanced: bool) -> Iterator[Row]:
    for option, declared in DECLARED.items():
        # a button stands beside what it has the details of
        hidden = declared.advanced and not isinstance(declared.allowed, Options)
        if option in defaults and declared.section == section and hidden == advanced:
            yield row_of(option, defaults[option])
            if option == "muon_adam_lr":
                yield from _encoder_rows()


def _encoder_rows() -> Iterator[Row]:
    allowed = DECLARED["muon_adam_lr"].allowed
    for place, (key, title) in enumerate(ENCODER_ROWS.items(), start=1):
        text = f"Learning rate of the auxiliary Adam in text encoder {place}. Empty: as “Adam learning rate” says."
        text = f"{text} {_bounds(allowed)} Default: empty."
        yield Row(key, title, text, ENTRY, (), None, number_check(allowed))


def row_of(option: str, default: Any) -> Row:
    """The row of an option.

    Args:
        option: of a rule.
        default: of the rule.
    """
    declared = DECLARED[option]
    allowed = declared.allowed
    values = tuple(words_of(allowed)) if isinstance(allowed, Choice) and not is_switch(allowed) else ()
    if isinstance(allowed, Options):
        widget = DIALOG
    elif is_switch(allowed):
        widget = SWITCH
    else:
        widget = DROPDOWN if values else ENTRY
    check = number_check(allowed) if isinstance(allowed, Numbers) else None
    return Row(key_of(option), declared.title, _help(option, default), widget, values, as_field(option, default), check)


def _help(option: str, default: Any) -> str:
    """What an option does, its unit, what it may be, and its default."""
    declared = DECLARED[option]
    text = FIRST_NULL.sub(r"\1Empty", OWN_HELP.get(option, declared.help))
    said = [CODE.sub(_title, NULL.sub("empty", text))]
    if declared.unit:
        said.append(f"Unit: {declared.unit}.")
    if isinstance(declared.allowed, Numbers):
        said.append(_bounds(declared.allowed))
    if not isinstance(declared.allowed, Options):
        said.append(f"Default: {_shown(as_field(option, default))}.")
    return " ".join(said)


def _bounds(allowed: Numbers) -> str:
    text = NULL.sub("empty", str(allowed))
    return f"{text[:1].upper()}{text[1:]}."


def _title(found: re.Match[str]) -> str:
    option = found.group(1)
    return f"“{DECLARED[option].title}”" if option in DECLARED else option


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "empty" if value is None else as_json(value)


def number_check(allowed: Numbers) -> Callable[[str], str | None]:
    """A check of the text in an entry. Empty is right: it means the default where the option is not optional."""

    def check(text: str) -> str | None:
        text = text.strip()
        if not text:
            return None
        try:
            value = int(text) if allowed.whole else float(text)
        except ValueError:
            value = None
        return None if value is not None and allowed.allows(value) else f"expected {NULL.sub('empty', str(allowed))}"

    return check
