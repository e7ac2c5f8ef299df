"""From options by their keys in a config to the arguments of the libraries' optimizers."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

ENCODER_ADAM_RATES = {"text_encoder": "muon_te1_adam_lr", "text_encoder_2": "muon_te2_adam_lr"}
"""Options of a Muon's auxiliary Adam, by the name of the parameter group."""


def paired_betas(options: dict[str, Any]) -> dict[str, Any]:
    """beta1 and beta2 as the pair that most libraries take."""
    beta1, beta2 = options.pop("beta1"), options.pop("beta2")
    return {**options, "betas": (beta1, beta2)}


def adam(options: dict[str, Any]) -> dict[str, Any]:
    """The same, and torch's fused kernel unless another way is asked for: on a CPU it takes a quarter of the time."""
    if options["fused"] is None and options["foreach"] is None:
        options["fused"] = True
    return paired_betas(options)


def adafactor(options: dict[str, Any]) -> dict[str, Any]:
    """Adafactor's two epsilons as a pair. With `relative_step` it makes its learning rate itself."""
    options["eps"] = (options.pop("eps"), options.pop("eps2"))
    return options


def renamed(**names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The betas as a tuple, and options by the names that the library has for them."""

    def convert(options: dict[str, Any]) -> dict[str, Any]:
        found = {names.get(key, key): value for key, value in options.items() if not key.startswith("beta")}
        betas = tuple(options[key] for key in ("beta1", "beta2", "beta3") if key in options)
        return {**found, "betas": betas} if betas else found

    return convert


def tiger(options: dict[str, Any]) -> dict[str, Any]:
    """One beta, which is that of the only momentum."""
    beta = options.pop("beta1")
    return {**renamed(decoupled_decay="weight_decouple")(options), "beta": beta}


def lion(options: dict[str, Any]) -> dict[str, Any]:
    """Its Triton kernel only where there is Triton: the library ends the whole process otherwise."""
    if options["use_triton"] and not (importlib.util.find_spec("triton") and torch.cuda.is_available()):
        raise ValueError("use_triton needs Triton and a GPU; set it to false")
    return paired_betas(options)


def prodigy_plus(options: dict[str, Any]) -> dict[str, Any]:
    """The library's own β₃ stays apart from the pair."""
    beta3 = options.pop("beta3")
    return {**paired_betas(options), "beta3": beta3}


def ademamix(options: dict[str, Any]) -> dict[str, Any]:
    if options.get("optim_bits", 32) not in (8, 32):
        raise ValueError(f"optim_bits: found {options['optim_bits']}, expected 8 or 32")
    return renamed()(options)


def muon(options: dict[str, Any]) -> dict[str, Any]:
    """Who is stepped by Muon, and with which learning rates the others are."""
    layers = {key: options.pop(key) for key in ("MuonWithAuxAdam", "muon_hidden_layers", "muon_adam_regex")}
    common = options.pop("muon_adam_lr")
    rates = {group: options.pop(key) for group, key in ENCODER_ADAM_RATES.items()}

    def adam_rate(group: str) -> float | None:
        return common if rates.get(group) is None else rates[group]

    return {**options, "layers": layers, "adam_rates": adam_rate}
