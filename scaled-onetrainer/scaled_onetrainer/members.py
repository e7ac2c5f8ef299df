"""Our optimizers under the names that OneTrainer's lists and presets show them by."""

from scaled_optim.rules.registry import RULES

# Names of rules that OneTrainer has none of; the others say whose features they have beside the ones of that name.
OWN = ("STIEFEL_LORA", "LORA_RITE")
PREFIX = "SCALED_"

MEMBERS: dict[str, str] = {rule if rule in OWN else f"{PREFIX}{rule}": rule for rule in RULES}
"""Rule by the name in OneTrainer."""


def rule_of(optimizer: object) -> str | None:
    """The rule of one of our optimizers, None for theirs.

    Args:
        optimizer: a member of their enumeration, its name, or None.
    """
    return MEMBERS.get(str(optimizer))
