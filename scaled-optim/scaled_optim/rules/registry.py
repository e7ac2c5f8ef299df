"""Every rule by the name it has in configs."""

from collections.abc import Mapping
from typing import Any

from scaled_optim.rules.AdaMuonAdv import AdaMuonAdv
from scaled_optim.rules.AdamWAdv import AdamWAdv
from scaled_optim.rules.AdoptAdv import AdoptAdv
from scaled_optim.rules.LionAdv import LionAdv
from scaled_optim.rules.LoRARite import LoRARite
from scaled_optim.rules.MuonAdv import MuonAdv
from scaled_optim.rules.ProdigyAdv import ProdigyAdv
from scaled_optim.rules.Rule import Rule
from scaled_optim.rules.SignSGDAdv import SignSGDAdv
from scaled_optim.rules.SinkSGDAdv import SinkSGDAdv
from scaled_optim.rules.StiefelLoRA import StiefelLoRA

RULES: dict[str, Rule] = {
    kind.name: kind()
    for kind in (
        AdamWAdv,
        AdoptAdv,
        ProdigyAdv,
        LionAdv,
        SignSGDAdv,
        SinkSGDAdv,
        MuonAdv,
        AdaMuonAdv,
        StiefelLoRA,
        LoRARite,
    )
}


def rule_options(rule: Rule, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a rule: those given, and the defaults of the others.

    Args:
        rule: of `RULES`, or one of your own.
        given: option -> value; the values are not checked here.

    Returns:
        Option -> value, for every option that the rule has.

    Raises:
        ValueError: the rule has no such option; the message names the rules that have it.
    """
    for name in given:
        if name not in rule.defaults:
            owners = owners_of(name)
            who = f"it is an option of {', '.join(owners)}" if owners else "no rule has it"
            raise ValueError(f"{name}: {rule.name} has no such option; {who}.")
    return {**rule.defaults, **given}


def owners_of(option: str) -> list[str]:
    """Names of the rules that have an option."""
    return [rule.name for rule in RULES.values() if option in rule.defaults]
