"""What a field accepts, in the language of the window; `expected_text` says it in English and in the words of JSON."""

from modules.util.config.field_type import expected_text
from modules.util.texts import all_of, later, tr
from modules.viewModel.FormField import FormField

KINDS = {
    int: later("a whole number"),
    float: later("a number"),
    list: later("a list"),
    dict: later("an object"),
}


def expected_words(one: FormField) -> str:
    """What an option accepts: "a number of at least 0, or empty". Of numbers, lists and objects: others show it."""
    kind, declared = one.kind, one.declared
    text = tr("a list of objects") if kind.item and kind.kind is list else tr(KINDS[kind.kind])
    low, high = _number(declared.ge), _number(declared.le)
    if low and high:
        text = tr("{what} from {low} to {high}", what=text, low=low, high=high)
    elif limits := _limits(one):
        # "a number of at least 0", but "a number more than 0"
        text = (
            tr("{what} of {limits}", what=text, limits=limits)
            if low or (high and declared.gt is None)
            else (tr("{what} {limits}", what=text, limits=limits))
        )
    text = tr("{what}, inf for no limit", what=text) if declared.infinite else text
    return tr("{what}, or empty", what=text) if kind.nullable else text


def _limits(one: FormField) -> str:
    declared = one.declared
    found = [
        tr("at least {limit}", limit=_number(declared.ge)) if declared.ge is not None else "",
        tr("more than {limit}", limit=_number(declared.gt)) if declared.gt is not None else "",
        tr("at most {limit}", limit=_number(declared.le)) if declared.le is not None else "",
        tr("less than {limit}", limit=_number(declared.lt)) if declared.lt is not None else "",
    ]
    return all_of([text for text in found if text])


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:g}" if abs(value) < 1e6 else str(value)


def refusal(one: FormField, text: str) -> str:
    """What a config says of a value that an option does not accept, in the language of the window, where that says what
    was found and expected; any other message as it is.
    """
    english = expected_text(one.owner, one.name)
    found, between, hint = text.partition(f", expected {english}")
    if one.kind.kind not in KINDS or not between or not found.startswith("found "):
        return text
    told = tr("found {value}, expected {what}", value=found.removeprefix("found "), what=expected_words(one))
    return f"{told}{hint}"
