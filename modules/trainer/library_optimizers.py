"""Optimizers of well-kept libraries: where each is, which options it has, and what they are called there."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modules.trainer.library_options import (
    ENCODER_ADAM_RATES,
    adafactor,
    adam,
    ademamix,
    lion,
    muon,
    paired_betas,
    prodigy_plus,
    renamed,
    tiger,
)
from modules.util.enum.Optimizer import Optimizer
from modules.util.UserError import UserError

import torch

# module -> what pip calls it
PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "prodigyopt": "prodigyopt",
    "schedulefree": "schedulefree",
    "bitsandbytes": "bitsandbytes",
    "pytorch_optimizer": "pytorch_optimizer",
    "dadaptation": "dadaptation",
    "lion_pytorch": "lion-pytorch",
    "prodigyplus": "prodigy-plus-schedule-free",
}


@dataclass(frozen=True)
class LibraryOptimizer:
    """One optimizer of a library.

    Attributes:
        path: module and class.
        defaults: every option that it supports, by its key in the config, with its default.
        convert: from these options to the class's arguments.
        schedule_free: whether it keeps averaged weights that `eval()` swaps in.
        one_rate: whether all groups must have the same learning rate.
        idle: option that it has not -> values at which nothing is lost; None: every value.
        needs: packages beside the one that the class is in.
        wants_rate: whether the class takes no groups without a learning rate beside theirs.
    """

    path: str
    defaults: Mapping[str, Any]
    convert: Callable[[dict[str, Any]], dict[str, Any]] = dict
    schedule_free: bool = False
    one_rate: bool = False
    idle: Mapping[str, tuple | None] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    wants_rate: bool = False

    @property
    def packages(self) -> tuple[str, ...]:
        """What pip must have installed for it."""
        own = PACKAGES.get(self.path.partition(".")[0])
        return (*((own,) if own else ()), *self.needs)

    def load(self) -> type[torch.optim.Optimizer]:
        """The class. Raises ImportError, OSError or RuntimeError where its library can't be loaded."""
        module, name = self.path.rsplit(".", 1)
        return getattr(importlib.import_module(module), name)

    def load_or_tell(self, name: Optimizer) -> type[torch.optim.Optimizer]:
        """The class. Raises UserError, with what to install, where its library can't be loaded."""
        try:
            return self.load()
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            packages = self.packages
            raise UserError(
                f"optimizer.optimizer: {name} needs {' and '.join(packages)}, which can't be loaded here: {error}. "
                f"Install: python -m pip install {' '.join(packages)}. Or choose another optimizer."
            ) from error

    def make(self, name: Optimizer, groups: list[dict[str, Any]], options: dict[str, Any], seed: int) -> Any:
        """The optimizer itself; its `option_names` are those of its options, of which each group has most.

        Raises:
            UserError: its library is missing or of another version, or refuses the options.
        """
        kind = self.load_or_tell(name)
        if len(groups) == 1 and options.get("split_groups"):
            # Prodigy Plus would print that there is nothing to split
            options = {**options, "split_groups": False}
        try:
            rate, arguments = {"lr": groups[0]["lr"]} if self.wants_rate else {}, self.convert(options)
            made = kind(groups, **rate, **arguments)
        except (ValueError, RuntimeError, TypeError) as error:
            raise UserError(f"optimizer: {name} refuses its options: {error}") from error
        # the second one is that of MUON's groups
        made.option_names = frozenset((*arguments, "lr_share"))
        return made


ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
TORCH = {"foreach": None, "fused": None, "maximize": False}
BITS = {"min_8bit_size": 4096}
PAGED = {**BITS, "is_paged": False}
ADAPTED = {"log_every": 0, "d0": 1e-6}
GROWN = {**ADAPTED, "growth_rate": float("inf")}
DECAY = {"weight_decay": 0.0, "decoupled_decay": True, "fixed_decay": False}
DECOUPLED = {"decoupled_decay": "weight_decouple"}
# OneTrainer's files hold these: bitsandbytes clips by no percentile any more, and always quantizes in blocks. Its
# 8-bit classes take 32 for `optim_bits` and keep 8.
IDLE = {"percentile_clipping": (100,), "block_wise": None}
IN_8_BITS = {**IDLE, "optim_bits": (8, 32)}
IN_32_BITS = {**IDLE, "optim_bits": (32,), "min_8bit_size": None}
# bitsandbytes' LAMB always does both
LAMB = {"bias_correction": (True,), "adam_w_mode": (True,)}

LIBRARY: dict[Optimizer, LibraryOptimizer] = {
    Optimizer.ADAMW: LibraryOptimizer(
        "torch.optim.AdamW",
        {**ADAM, **TORCH, "weight_decay": 0.01, "amsgrad": False, "capturable": False},
        adam,
    ),
    Optimizer.ADAM: LibraryOptimizer(
        "torch.optim.Adam",
        {**ADAM, **TORCH, "weight_decay": 0.0, "amsgrad": False, "capturable": False},
        adam,
    ),
    Optimizer.SGD: LibraryOptimizer(
        "torch.optim.SGD",
        {**TORCH, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False},
    ),
    Optimizer.ADAGRAD: LibraryOptimizer(
        "torch.optim.Adagrad",
        {**TORCH, "lr_decay": 0.0, "weight_decay": 0.0, "initial_accumulator_value": 0, "eps": 1e-10},
        idle=IN_32_BITS,
    ),
    Optimizer.RMSPROP: LibraryOptimizer(
        "torch.optim.RMSprop",
        {"alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False, "foreach": None},
        idle=IN_32_BITS,
    ),
    Optimizer.ADAFACTOR: LibraryOptimizer(
        "transformers.optimization.Adafactor",
        {
            "eps": 1e-30,
            "eps2": 1e-3,
            "clip_threshold": 1.0,
            "decay_rate": -0.8,
            "beta1": None,
            "weight_decay": 0.0,
            "scale_parameter": False,
            "relative_step": False,
            "warmup_init": False,
        },
        adafactor,
    ),
    Optimizer.PRODIGY: LibraryOptimizer(
        "prodigyopt.Prodigy",
        {
            "beta1": 0.9,
            "beta2": 0.999,
            "beta3": None,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "decouple": True,
            "use_bias_correction": False,
            "safeguard_warmup": False,
            "d0": 1e-6,
            "d_coef": 1.0,
            "growth_rate": float("inf"),
            "slice_p": 1,
        },
        paired_betas,
        one_rate=True,
    ),
    Optimizer.SCHEDULE_FREE_ADAMW: LibraryOptimizer(
        "schedulefree.AdamWScheduleFree",
        {**ADAM, "weight_decay": 0.0, "r": 0.0, "weight_lr_power": 2.0, "foreach": True},
        paired_betas,
        schedule_free=True,
    ),
    Optimizer.SCHEDULE_FREE_SGD: LibraryOptimizer(
        "schedulefree.SGDScheduleFree",
        {"momentum": 0.9, "weight_decay": 0.0, "r": 0.0, "weight_lr_power": 2.0, "foreach": True},
        schedule_free=True,
    ),
    Optimizer.ADAMW_8BIT: LibraryOptimizer(
        "bitsandbytes.optim.AdamW8bit", {**ADAM, **PAGED, "weight_decay": 0.01}, paired_betas, idle=IN_8_BITS
    ),
    Optimizer.ADAM_8BIT: LibraryOptimizer(
        "bitsandbytes.optim.Adam8bit", {**ADAM, **PAGED, "weight_decay": 0.0}, paired_betas, idle=IN_8_BITS
    ),
    Optimizer.LION_8BIT: LibraryOptimizer(
        "bitsandbytes.optim.Lion8bit",
        {"beta1": 0.9, "beta2": 0.99, **PAGED, "weight_decay": 0.0},
        paired_betas,
        idle=IN_8_BITS,
    ),
    Optimizer.ADAGRAD_8BIT: LibraryOptimizer(
        "bitsandbytes.optim.Adagrad8bit", {**BITS, "eps": 1e-10, "weight_decay": 0.0}, idle=IN_8_BITS
    ),
    Optimizer.RMSPROP_8BIT: LibraryOptimizer(
        "bitsandbytes.optim.RMSprop8bit", {**BITS, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0}, idle=IN_8_BITS
    ),
    Optimizer.SGD_8BIT: LibraryOptimizer(
        "bitsandbytes.optim.SGD8bit", {**BITS, "momentum": 0.9, "weight_decay": 0.0}, idle=IN_8_BITS, wants_rate=True
    ),
    Optimizer.AdEMAMix: LibraryOptimizer(
        "bitsandbytes.optim.AdEMAMix",
        {**ADAM, "beta3": 0.9999, "alpha": 5.0, "weight_decay": 0.01, "optim_bits": 32, **PAGED},
        ademamix,
        idle=IDLE,
    ),
    Optimizer.AdEMAMix_8BIT: LibraryOptimizer(
        "bitsandbytes.optim.AdEMAMix8bit",
        {**ADAM, "beta3": 0.9999, "alpha": 5.0, "weight_decay": 0.01, **PAGED},
        ademamix,
        idle=IN_8_BITS,
    ),
    Optimizer.LAMB: LibraryOptimizer(
        "bitsandbytes.optim.LAMB",
        {**ADAM, "weight_decay": 0.0, "max_unorm": 1.0},
        paired_betas,
        idle={**IN_32_BITS, **LAMB},
    ),
    Optimizer.LAMB_8BIT: LibraryOptimizer(
        "modules.trainer.eight_bit.Lamb8bit",
        {**ADAM, **BITS, "weight_decay": 0.0, "max_unorm": 1.0},
        paired_betas,
        idle={**IN_8_BITS, **LAMB},
        needs=("bitsandbytes", "pytorch_optimizer"),
    ),
    Optimizer.LARS: LibraryOptimizer(
        "bitsandbytes.optim.LARS",
        {"momentum": 0.9, "weight_decay": 0.0, "max_unorm": 0.02},
        idle=IN_32_BITS,
        wants_rate=True,
    ),
    Optimizer.LARS_8BIT: LibraryOptimizer(
        "modules.trainer.eight_bit.Lars8bit",
        {**BITS, "momentum": 0.9, "weight_decay": 0.0, "max_unorm": 0.02},
        idle=IN_8_BITS,
        wants_rate=True,
        needs=("bitsandbytes", "pytorch_optimizer"),
    ),
    Optimizer.LION: LibraryOptimizer(
        "lion_pytorch.Lion", {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "use_triton": False}, lion
    ),
    Optimizer.DADAPT_ADA_GRAD: LibraryOptimizer(
        "dadaptation.DAdaptAdaGrad", {**GROWN, "momentum": 0.0, "eps": 1e-6, "weight_decay": 0.0}, one_rate=True
    ),
    Optimizer.DADAPT_ADAM: LibraryOptimizer(
        "dadaptation.DAdaptAdam",
        {**ADAM, **GROWN, "weight_decay": 0.0, "decouple": False, "use_bias_correction": False},
        paired_betas,
        one_rate=True,
    ),
    Optimizer.DADAPT_ADAN: LibraryOptimizer(
        "dadaptation.DAdaptAdan",
        {"beta1": 0.98, "beta2": 0.92, "beta3": 0.99, "eps": 1e-8, **GROWN, "weight_decay": 0.02, "no_prox": False},
        renamed(),
        one_rate=True,
    ),
    Optimizer.DADAPT_LION: LibraryOptimizer(
        "dadaptation.DAdaptLion",
        {"beta1": 0.9, "beta2": 0.99, **ADAPTED, "weight_decay": 0.0},
        paired_betas,
        one_rate=True,
    ),
    Optimizer.DADAPT_SGD: LibraryOptimizer(
        "dadaptation.DAdaptSGD", {**GROWN, "momentum": 0.0, "weight_decay": 0.0}, one_rate=True
    ),
    Optimizer.PRODIGY_PLUS_SCHEDULE_FREE: LibraryOptimizer(
        "prodigyplus.ProdigyPlusScheduleFree",
        {
            "beta1": 0.9,
            "beta2": 0.99,
            "beta3": None,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "weight_decay_by_lr": True,
            "d0": 1e-6,
            "d_coef": 1.0,
            "d_limiter": True,
            "prodigy_steps": 0,
            "schedulefree_c": 0.0,
            "split_groups": True,
            "split_groups_mean": False,
            "factored": True,
            "factored_fp32": True,
            "use_bias_correction": False,
            "use_stableadamw": True,
            "use_schedulefree": True,
            "use_speed": False,
            "stochastic_rounding": True,
            "use_cautious": False,
            "use_grams": False,
            "use_adopt": False,
            "use_orthograd": False,
        },
        prodigy_plus,
        schedule_free=True,
    ),
    Optimizer.CAME: LibraryOptimizer(
        "pytorch_optimizer.optimizer.came.CAME",
        {"beta1": 0.9, "beta2": 0.999, "beta3": 0.9999, "eps": 1e-30, "eps2": 1e-16, **DECAY, "clip_threshold": 1.0},
        renamed(**DECOUPLED, eps="eps1"),
    ),
    Optimizer.CAME_8BIT: LibraryOptimizer(
        "modules.trainer.eight_bit.Came8bit",
        {
            **{"beta1": 0.9, "beta2": 0.999, "beta3": 0.9999, "eps": 1e-30, "eps2": 1e-16},
            **{**DECAY, "clip_threshold": 1.0, "min_8bit_size": 16384, "quant_block_size": 2048},
        },
        renamed(**DECOUPLED, eps="eps1", min_8bit_size="smallest", quant_block_size="block"),
        needs=("bitsandbytes", "pytorch_optimizer"),
    ),
    Optimizer.MUON: LibraryOptimizer(
        "modules.trainer.muon.MuonWithAdam",
        {
            "momentum": 0.95,
            "nesterov": True,
            "ns_steps": 5,
            "weight_decay": 0.0,
            "MuonWithAuxAdam": True,
            "muon_hidden_layers": None,
            "muon_adam_regex": False,
            "muon_adam_lr": 3e-4,
            **dict.fromkeys(ENCODER_ADAM_RATES.values()),
        },
        muon,
        needs=("pytorch_optimizer",),
    ),
    Optimizer.ADABELIEF: LibraryOptimizer(
        "pytorch_optimizer.optimizer.adabelief.AdaBelief",
        {
            **{**ADAM, "eps": 1e-16, **DECAY, "amsgrad": False},
            **{"rectify": True, "n_sma_threshold": 5, "degenerated_to_sgd": True, "adam_debias": False},
        },
        renamed(**DECOUPLED, amsgrad="ams_bound"),
    ),
    Optimizer.ADOPT: LibraryOptimizer(
        "pytorch_optimizer.optimizer.adopt.ADOPT",
        {"beta1": 0.9, "beta2": 0.9999, "eps": 1e-6, **DECAY, "decoupled_decay": False, "cautious": False},
        renamed(**DECOUPLED),
    ),
    Optimizer.AIDA: LibraryOptimizer(
        "pytorch_optimizer.optimizer.aida.Aida",
        {
            **{**ADAM, **DECAY, "decoupled_decay": False, "k": 2, "xi": 1e-20, "ams_bound": False},
            **{"rectify": False, "n_sma_threshold": 5, "degenerated_to_sgd": True},
            **{"adanorm": False, "r": 0.95, "adam_debias": False},
        },
        renamed(**DECOUPLED, r="adanorm_r"),
    ),
    Optimizer.TIGER: LibraryOptimizer(
        "pytorch_optimizer.optimizer.tiger.Tiger", {"beta1": 0.965, **DECAY, "weight_decay": 0.01}, tiger
    ),
    Optimizer.YOGI: LibraryOptimizer(
        "pytorch_optimizer.optimizer.yogi.Yogi",
        {**ADAM, "eps": 1e-3, **DECAY, "initial_accumulator": 1e-6, "adam_debias": False},
        renamed(**DECOUPLED),
        # the average of norms, of which adanorm made use
        idle={"r": None},
    ),
}
"""Every optimizer that is no rule of our own engine."""
