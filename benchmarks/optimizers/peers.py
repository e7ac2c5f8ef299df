"""How our options are spelled for adv_optm, so that both optimizers do the same work."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.optimizers.per_pair import PerPairRite, PerPairStiefel
from scaled_optim.rules.registry import RULES, rule_options

import torch
from torch import nn

import adv_optm

# our rule -> their class
CLASSES = {
    "ADAMW_ADV": "AdamW_adv",
    "ADOPT_ADV": "Adopt_adv",
    "PRODIGY_ADV": "Prodigy_adv",
    "LION_ADV": "Lion_adv",
    "SIGNSGD_ADV": "SignSGD_adv",
    "SINKSGD_ADV": "SinkSGD_adv",
    "MUON_ADV": "Muon_adv",
    "ADAMUON_ADV": "AdaMuon_adv",
}
# our rule -> the same equations, written straightforwardly, as adv_optm has none
PER_PAIR = {"STIEFEL_LORA": PerPairStiefel, "LORA_RITE": PerPairRite}
RENAMED = {"scaled_optm": "spectral_normalization"}
# where an option goes by another name in one rule only
RENAMED_IN = {"ADAMUON_ADV": {"auto_kappa_p": "auto_projection"}}
# options of Muon_adv's auxiliary Adam that are the whole optimizer's
SHARED_WITH_AUX = ("cautious_wd", "stochastic_rounding", "centered_wd", "centered_wd_mode")
# theirs that one of our options stands for, see the functions below
HANDLED = ("beta1", "beta2", "eps", "scaled_eps", "weight_decay", "centered_wd", "centered_wd_mode", "state_precision",
           "nnmf_factor", "rms_rescaling", "MuonWithAuxAdam", "muon_adam_config", "orthogonal_gradient")  # fmt: skip


class NoPeer(ValueError):
    """adv_optm has nothing equal; says what it lacks."""


@dataclass(frozen=True)
class Spelling:
    """An optimizer of adv_optm.

    Attributes:
        kind: its class.
        arguments: all that the class is called with, beside the parameters.
        by_role: options of a group of its own for each role; empty: one group for all.
    """

    kind: str
    arguments: Mapping[str, Any]
    by_role: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def spelled(rule: str, options: Mapping[str, Any], dtype: torch.dtype, lr: float) -> Spelling:
    """The peer of a rule with these options, for the factors of LoRAs.

    Equal means equal work, which is not always an equal word: `auto` state is fp32 with us and the parameters' dtype
    with them, so that for bfloat16 parameters theirs is spelled fp32; and for LoRA factors our centered decay is plain
    decay at the centered rate.

    Raises:
        NoPeer: adv_optm does not have it.
    """
    everything = rule_options(RULES[rule], options)
    if rule in PER_PAIR:
        more = sorted(key for key, value in everything.items() if value != RULES[rule].defaults[key])
        if more or dtype != torch.float32:
            raise NoPeer(f"{PER_PAIR[rule].__name__} has no {', '.join(more) or dtype}")
        return Spelling(PER_PAIR[rule].__name__, {"lr": lr})
    kind = CLASSES[rule]
    arguments = _arguments(rule, everything, dtype)
    by_role: dict[str, dict[str, Any]] = {}
    if "MuonWithAuxAdam" in everything:
        aux = everything["MuonWithAuxAdam"]
        by_role = {"LORA_DOWN": {"use_muon": not aux}, "LORA_UP": {"use_muon": True}}
        if aux:
            arguments |= _aux_arguments(kind, RULES[rule].adam_options(everything), dtype)
        if rule == "ADAMUON_ADV" and everything["factored_2nd"]:
            raise NoPeer("AdaMuon_adv's factored_2nd fails for matrices with more rows than columns")
    return Spelling(kind, {"lr": lr, **arguments}, by_role)


def _arguments(rule: str, options: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    kind, defaults = CLASSES[rule], RULES[rule].defaults
    accepted = inspect.signature(getattr(adv_optm, kind)).parameters
    names = RENAMED | RENAMED_IN.get(rule, {})
    arguments = {
        **_betas(options, accepted),
        **_epsilon(options, accepted),
        **_state(kind, options, accepted, dtype),
        "orthogonal_gradient": _orthogonal_gradient(options),
        # zero is where LoRA factors start
        "weight_decay": options["centered_wd"] or options["weight_decay"],
    }
    if "rms_rescaling" in options:
        arguments["rms_rescaling"] = options["rms_rescaling"] is not False and not options["scaled_optm"]
    for key, value in options.items():
        theirs = names.get(key, key)
        if key in HANDLED:
            continue
        if theirs in accepted:
            arguments[theirs] = value
        elif value != defaults[key]:
            raise NoPeer(f"{kind} has no {key}")
    return arguments


def _aux_arguments(kind: str, options: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """AdamW_adv's arguments with Muon's prefix for the Adam inside."""
    for key in ("kourkoutas_beta", "fisher_wd"):
        if options[key]:
            raise NoPeer(f"{kind}'s adam_{key} has no effect")
    accepted = inspect.signature(getattr(adv_optm, kind)).parameters
    arguments = {}
    for key, value in _arguments("ADAMW_ADV", options, dtype).items():
        if f"adam_{key}" in accepted:
            arguments[f"adam_{key}"] = value
        elif value != RULES["ADAMW_ADV"].defaults.get(key) and key not in SHARED_WITH_AUX:
            raise NoPeer(f"{kind} has no adam_{key}")
    return arguments


def _betas(options: Mapping[str, Any], accepted: Mapping[str, Any]) -> dict[str, Any]:
    if "betas" in accepted:
        return {"betas": (options["beta1"], options["beta2"])}
    return {"beta1": options["beta1"]} if "beta1" in accepted else {}


def _epsilon(options: Mapping[str, Any], accepted: Mapping[str, Any]) -> dict[str, Any]:
    if "eps" not in accepted:
        return {}
    if options.get("normuon_variant"):
        # ours has a fixed one there, and takes none from the options
        return {"eps": 1e-8}
    if not options["scaled_eps"]:
        return {"eps": options["eps"]}
    if options["eps"] != 1:
        raise NoPeer("adv_optm's scaled epsilon is 1/√numel, which is eps 1")
    return {"eps": None}


def _state(kind: str, options: Mapping[str, Any], accepted: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    precision = "factored" if options["nnmf_factor"] else options["state_precision"]
    if precision == "fp16":
        raise NoPeer(f"{kind} fails with fp16 state unless gradients are float16")
    if "state_precision" in accepted:
        return {"state_precision": "fp32" if precision == "auto" and dtype != torch.float32 else precision}
    if precision == "factored":
        return {"nnmf_factor": True}
    if precision not in ("auto", "fp32") or dtype != torch.float32:
        raise NoPeer(f"{kind} keeps its state in the parameters' dtype")
    return {}


def _orthogonal_gradient(options: Mapping[str, Any]) -> str:
    mode = options["orthogonal_gradient"]
    if mode == "per_rank":
        raise NoPeer("adv_optm removes no part along each rank by itself")
    return mode


def build(spelling: Spelling, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The peer's optimizer of parameters with `parameter_info`, marked as its LoRA factors are."""
    for kind in PER_PAIR.values():
        if spelling.kind == kind.__name__:
            return kind(parameters, **spelling.arguments)
    for parameter in parameters:
        role = parameter.parameter_info.role
        parameter._is_lora_A, parameter._is_lora_B = role == "LORA_DOWN", role == "LORA_UP"
    groups = [
        {"params": [p for p in parameters if p.parameter_info.role == role], **options}
        for role, options in spelling.by_role.items()
    ]
    return getattr(adv_optm, spelling.kind)(groups or parameters, **spelling.arguments)
