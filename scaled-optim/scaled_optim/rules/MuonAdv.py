import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from scaled_optim.arithmetic import unit_norm
from scaled_optim.features.moments import FIRST, first_moment
from scaled_optim.features.orthogonalization import orthogonalized
from scaled_optim.patterns import PatternError, find_pattern, split_patterns
from scaled_optim.roles import WHOLE, Role, Shape
from scaled_optim.rules.AdamWAdv import AdamWAdv
from scaled_optim.rules.Rule import COMMON, MOMENTUM, Rule
from scaled_optim.scaling import COHERENT
from scaled_optim.StackStep import Slot, StackStep

import torch
from torch import Tensor

LAST_GRADIENT, ROW_SQUARES = "last_gradient", "row_squares"
SKETCH_STREAM = 101
# RMS of Adam's steps, as measured for large models (arXiv 2502.16982).
ADAM_RMS = 0.2
# MARS-M's γ (arXiv 2510.21800).
MARS_GAMMA = 0.025
TINY = 1e-8

MUON: Mapping[str, Any] = {
    **COMMON,
    **MOMENTUM,
    "nesterov": True,
    "ns_steps": 5,
    "ns_dtype": "float32",
    "accelerated_ns": False,
    "low_rank_ortho": False,
    "ortho_rank": 128,
    "rms_rescaling": None,
    "normuon_variant": False,
    "approx_mars": False,
    "MuonWithAuxAdam": True,
    "muon_adam_config": None,
    "muon_adam_lr": None,
    "muon_hidden_layers": None,
    "muon_adam_regex": False,
}


# Of scaled steps by the law "coherent": all singular values of an orthogonal step are its largest one, where other
# rules' steps have few large ones. Measured: the best rate of these shares is that of OFT and of what Adam steps.
HIDDEN_SHARE = 1 / 3
COHERENT_SHARES = {"LORA_DOWN": 0.5, "LORA_UP": 0.5}


class MuonAdv(Rule):
    """Muon: u = the nearest orthogonal matrix to the momentum, of RMS 0.2 or scaled by √max(1, rows/cols).

    `normuon_variant`: rows are divided by the root of their running mean square (NorMuon, arXiv 2510.05491).
    `approx_mars`: gradients are corrected by their change since the last step (MARS-M, arXiv 2510.21800).
    `rms_rescaling` null: on, unless `scaled_optm` sets the size: that of `scaled_step`, times 1/2 for LoRA factors and
    1/3 for other matrices; with `scale_law` variance times 1.

    Muon steps hidden matrices and the up factors of LoRAs. The auxiliary Adam steps vectors, inputs, outputs and down
    factors, with the options of `muon_adam_config`. Without `MuonWithAuxAdam` it steps only what is no matrix.
    `muon_hidden_layers` leaves to Muon only matrices whose name contains one of its comma-separated parts, or with
    `muon_adam_regex` matches one. `muon_adam_lr`: the auxiliary Adam's own learning rate, which follows the schedule.
    """

    name = "MUON_ADV"
    defaults = {**MUON, "beta1": 0.95, "beta2_normuon": 0.95}
    beta1_key = "beta1"

    def check(self, options: Mapping[str, Any]) -> None:
        super().check(options)
        if options["rms_rescaling"] and options["scaled_optm"]:
            raise ValueError("rms_rescaling: scaled_optm sets the size of steps already; expected null or false.")
        if options["muon_adam_regex"]:
            for pattern in layer_patterns(options["muon_hidden_layers"], regex=True):
                try:
                    find_pattern(pattern)
                except PatternError as error:
                    raise ValueError(
                        f"muon_hidden_layers: found {pattern}, expected a regular expression: {error}."
                    ) from error
        aux = AdamWAdv()
        unknown = sorted((options["muon_adam_config"] or {}).keys() - aux.defaults.keys())
        if unknown:
            raise ValueError(
                f"muon_adam_config.{unknown[0]}: {aux.name} has no such option; "
                f"expected one of {', '.join(aux.defaults)}."
            )
        aux.check(self.adam_options(options))

    def adam_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The auxiliary Adam's: what is common to all rules comes from Muon's own options unless it is set there."""
        shared = {key: options[key] for key in COMMON}
        return {**AdamWAdv.defaults, **shared, "beta2": 0.99, **(options["muon_adam_config"] or {})}

    def for_parameter(
        self, role: Role, shape: Shape, name: str, options: Mapping[str, Any], partner_shape: Shape | None = None
    ) -> tuple[Rule, Mapping[str, Any]]:
        others = () if not options["MuonWithAuxAdam"] else ("LORA_DOWN", "INPUT_MATRIX", "OUTPUT")
        matrix = role.matrix and role.name not in others and min(shape) > 1
        if matrix and is_hidden_layer(name, options["muon_hidden_layers"], options["muon_adam_regex"]):
            return self, options
        return AdamWAdv(), {**self.adam_options(options), "own_lr": options["muon_adam_lr"]}

    def moments(self, options: Mapping[str, Any]) -> list[str]:
        return [FIRST, *([LAST_GRADIENT] if options["approx_mars"] else [])]

    def slots(self, options: Mapping[str, Any], role: Role, rows: int, cols: int) -> list[Slot]:
        slots = super().slots(options, role, rows, cols)
        if options["normuon_variant"]:
            slots.append(Slot(ROW_SQUARES, create=lambda p, keys: {"mean": p.new_zeros(p.shape[0], p.shape[1], 1)}))
        return slots

    def direction(self, s: StackStep) -> Tensor:
        u = orthogonalized(self.momentum(s), s.options, partial(s.noise, SKETCH_STREAM))
        if s.options["normuon_variant"]:
            u = even_rows(s, u, s.options["beta2_normuon"])
        return muon_sized(s, u)

    def scaled(self, s: StackStep, u: Tensor) -> Tensor:
        share = COHERENT_SHARES.get(s.role.name, HIDDEN_SHARE) if s.options["scale_law"] == COHERENT else 1.0
        return super().scaled(s, u).mul_(share)

    def momentum(self, s: StackStep) -> Tensor:
        beta1 = s.options["beta1"]
        return first_moment(s, mars_gradient(s, beta1), beta1)


def layer_patterns(layers: str | None, regex: bool) -> list[str]:
    """The comma-separated parts of `muon_hidden_layers`; commas inside of brackets belong to regular expressions."""
    if regex:
        return split_patterns(layers or "")
    return [pattern.strip() for pattern in (layers or "").split(",") if pattern.strip()]


def is_hidden_layer(name: str, layers: str | None, regex: bool) -> bool:
    """Whether a name has one of the parts of `muon_hidden_layers`, or matches one; no parts: every name does."""
    patterns = layer_patterns(layers, regex)
    return not patterns or any(find_pattern(pattern).search(name) if regex else pattern in name for pattern in patterns)


def mars_gradient(s: StackStep, beta1: float) -> Tensor:
    """`approx_mars`: g + γ·β₁/(1 − β₁)·(g − the last g)."""
    if not s.has(LAST_GRADIENT):
        return s.g
    last = s.read(LAST_GRADIENT)
    corrected = torch.add(s.g, s.g - last, alpha=MARS_GAMMA * beta1 / (1 - beta1))
    s.write(LAST_GRADIENT, last.copy_(s.g))
    return corrected


def even_rows(s: StackStep, u: Tensor, beta2: float) -> Tensor:
    """NorMuon: every row divided by the root of the running mean of its mean square."""
    mean = s.store(ROW_SQUARES)["mean"]
    mean.lerp_(u.square().mean(2, keepdim=True), 1 - beta2)
    return u / (mean.sqrt() + TINY)


def muon_sized(s: StackStep, u: Tensor) -> Tensor:
    """u at RMS 0.2, or times √max(1, rows/cols)."""
    if s.options["scaled_optm"]:
        return u
    rows, cols = u.shape[1:]
    if s.options["rms_rescaling"] is False:
        return u * math.sqrt(max(1, rows / cols))
    return u * (ADAM_RMS * math.sqrt(rows * cols) / unit_norm(u, WHOLE).clamp(min=TINY))
