"""The table rule × option for the documentation, made from what the rules declare."""

from scaled_optim.rules.registry import RULES


def rules_markdown() -> str:
    """Each option, and its default in every rule that has it."""
    names = list(dict.fromkeys(option for rule in RULES.values() for option in rule.defaults))
    lines = [
        "| option | " + " | ".join(RULES) + " |",
        "|---|" + "---|" * len(RULES),
    ]
    for name in names:
        cells = [_text(rule.defaults[name]) if name in rule.defaults else "" for rule in RULES.values()]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    """A default as JSON would write it, except for infinity, which JSON has not."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
