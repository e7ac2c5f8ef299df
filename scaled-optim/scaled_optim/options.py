"""The one declaration of every option of every rule: its words, its bounds, and where a form shows it.

Which rules have an option, and its default in each, is said by the rules' own `defaults`; `document.py` joins the two.
The configs, windows and pages of the programs that use the engine are made from this. Nothing here needs torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scaled_optim.allowed_values import BOOLEAN, Choice, Numbers, Options, Text, as_json

GENERAL, FEATURES, MUON, PRODIGY = "general", "features", "muon", "prodigy"
SECTIONS = (GENERAL, FEATURES, MUON, PRODIGY)
SHARE = Numbers(high=1, below=True)
POSITIVE = Numbers(above=True, below=True)
FINITE = Numbers(below=True)
COUNT = Numbers(whole=True)
FROM_ONE = Numbers(low=1, whole=True)


@dataclass(frozen=True)
class Declared:
    """One option.

    Attributes:
        title: short name for a form.
        help: what it does and when to change it.
        allowed: its values; `null` in a config always means the rule's default.
        section: one of `SECTIONS`, by which forms group options.
        advanced: whether a form hides it until more is asked for.
        unit: of its value; empty: none.
    """

    title: str
    help: str
    allowed: Numbers | Choice | Options | Text = BOOLEAN
    section: str = FEATURES
    advanced: bool = False
    unit: str = ""


DECLARED: Mapping[str, Declared] = {
    "beta1": Declared(
        "Beta 1", "Share of the running mean of gradients that stays at each step. Higher is smoother.", SHARE, GENERAL
    ),
    "beta2": Declared(
        "Beta 2", "Share of the running mean of squared gradients that stays at each step.", SHARE, GENERAL
    ),
    "momentum": Declared("Momentum", "Share of the last steps' direction that stays.", SHARE, GENERAL),
    "eps": Declared("Epsilon", "Keeps divisions away from zero. Larger values damp the adaptivity.", FINITE, GENERAL),
    "weight_decay": Declared(
        "Weight decay",
        "Pulls weights toward zero, against overfitting. With scaled steps it does not depend on the learning rate.",
        FINITE,
        GENERAL,
    ),
    "stochastic_rounding": Declared(
        "Stochastic rounding",
        "Rounds bfloat16 weights up or down at random, so that small steps are not lost.",
        section=GENERAL,
    ),
    "use_bias_correction": Declared(
        "Bias correction",
        "Corrects running means in the first steps, which works as a warm-up.",
        section=GENERAL,
    ),
    "scaled_optm": Declared(
        "Scaled steps",
        "Gives each step a size that follows from rank, block size and width, so that a learning rate can be kept when "
        "these change.",
    ),
    "scale_law": Declared(
        "Scale law",
        "How large scaled steps are for each kind of parameter. coherent keeps one learning rate best over ranks, "
        "block sizes and methods; variance gives steps of random signs one output variance.",
        Choice(("coherent", "variance")),
        advanced=True,
    ),
    "scaled_eps": Declared("Scaled epsilon", "Divides epsilon by the square root of the parameter's size."),
    "state_precision": Declared(
        "State precision",
        "How optimizer state is stored. bf16_sr halves it, int8_sr quarters it, factored keeps almost none.",
        Choice(("auto", "fp32", "bf16_sr", "fp16", "int8_sr", "factored")),
    ),
    "nnmf_factor": Declared("Factored state", "Older spelling of `state_precision` factored.", advanced=True),
    "factored_2nd": Declared("Factored second moment", "Stores only the mean of squared gradients in factored form."),
    "centered_wd": Declared(
        "Centered weight decay", "Pulls weights toward where they started instead of toward zero.", FINITE
    ),
    "centered_wd_mode": Declared(
        "Centered storage",
        "How the starting weights are stored: full is exact, the others need less memory.",
        Choice(("full", "float8", "int8", "int4", "wrapped8", "wrapped4")),
    ),
    "cautious_wd": Declared("Cautious weight decay", "Decays a weight only where the step has the same direction."),
    "scaled_wd": Declared(
        "Scaled weight decay",
        "Divides the decay by the width of the layer and makes it independent of the learning rate, so that it can be "
        "kept when these change.",
    ),
    "geometric_wd": Declared(
        "Geometric weight decay",
        "Decays in the geometry of the steps: along the signs of the weights, or their rows and columns.",
        advanced=True,
    ),
    "fisher_wd": Declared("Fisher weight decay", "Divides the decay by the gradient's running size, as FAdam does."),
    "orthogonal_gradient": Declared(
        "Orthogonal gradient",
        "Removes from the gradient what only lengthens the weights: over the whole tensor, per rank, or for rows and "
        "columns in turn. true means flattened.",
        Choice(("disabled", "flattened", "per_rank", "iterative")),
    ),
    "kourkoutas_beta": Declared("Kourkoutas beta", "Lowers beta 2 while gradients are unusually large."),
    "beta2_min": Declared(
        "Lowest beta 2", "Beta 2 at the largest gradients, for Kourkoutas beta.", SHARE, advanced=True
    ),
    "ema_alpha": Declared(
        "Gradient norm averaging", "Averaging factor of the gradient norm, for Kourkoutas beta.", SHARE, advanced=True
    ),
    "tiny_spike": Declared(
        "Tiny spike", "Keeps Kourkoutas beta's ratio away from a division by zero.", FINITE, advanced=True
    ),
    "k_warmup_steps": Declared(
        "Kourkoutas warm-up",
        "Steps with a fixed beta 2 before Kourkoutas beta begins.",
        COUNT,
        advanced=True,
        unit="steps",
    ),
    "freeze_on_flip": Declared("Freeze on flip", "Sign rules skip a weight in the step in which its sign changes."),
    "l1_adaptive": Declared("Projected adaptivity", "Multiplies sign steps by the mean size of the direction."),
    "use_atan2": Declared("Use atan2", "Replaces the division by a bounded function that needs no epsilon."),
    "nesterov": Declared("Nesterov", "Looks one step ahead along the momentum."),
    "nesterov_coef": Declared(
        "Nesterov coefficient",
        "How far it looks ahead. null: the momentum's own factor.",
        Numbers(high=1, optional=True),
        advanced=True,
    ),
    "normed_momentum": Declared(
        "Normed momentum", "Divides each gradient by its size before it enters the momentum.", advanced=True
    ),
    "use_cautious": Declared("Cautious steps", "Skips weights whose step and gradient disagree.", advanced=True),
    "use_grams": Declared("Grams", "Takes the direction from the gradient and the size from the rule.", advanced=True),
    "use_AdEMAMix": Declared("AdEMAMix", "Adds a second, slow momentum.", advanced=True),
    "Simplified_AdEMAMix": Declared(
        "Simplified AdEMAMix",
        "Lets one momentum accumulate and adds the current gradient, enlarged by `alpha_grad`. Needs a far smaller "
        "learning rate.",
        advanced=True,
    ),
    "beta3_ema": Declared("Slow beta", "Averaging factor of AdEMAMix's slow momentum.", SHARE, advanced=True),
    "alpha": Declared("Alpha", "Weight of AdEMAMix's slow momentum.", FINITE, advanced=True),
    "alpha_grad": Declared(
        "Gradient weight", "Weight of the current gradient in simplified AdEMAMix.", FINITE, advanced=True
    ),
    "snr_cond": Declared(
        "Signal-to-noise steps",
        "With normed momentum: larger steps where normalised gradients agree with each other.",
        advanced=True,
    ),
    "stochastic_sign": Declared(
        "Stochastic signs",
        "Draws signs at random, so that their mean keeps how large the direction is within its row and column.",
        advanced=True,
    ),
    "sinkhorn_iterations": Declared(
        "Sinkhorn iterations",
        "How often SinkSGD normalises rows and columns. More make both more even.",
        FROM_ONE,
        unit="iterations",
    ),
    "orthogonal_sinkhorn": Declared(
        "Orthogonal Sinkhorn",
        "SinkSGD: takes away, after each normalisation, what lies along the parameter's own row or column.",
        advanced=True,
    ),
    "auto_kappa_p": Declared(
        "Automatic kappa",
        "Lets sign rules choose the norm of the step by the shape of the parameter.",
        advanced=True,
    ),
    "stiefel_base": Declared(
        "Stiefel base",
        "Stiefel-LoRA: takes the direction from AdamW's moments, or from the sign of the momentum, which needs half "
        "the memory.",
        Choice(("ADAMW", "SIGN")),
        advanced=True,
    ),
    "clip_unmagnified_grad": Declared(
        "Clip unmagnified gradient",
        "LoRA-RITE: largest norm of each factor's gradient after its partner's size has been taken out of it; 0: any.",
        FINITE,
        advanced=True,
    ),
    "rite_scale": Declared(
        "LoRA-RITE scale",
        "sum is the paper's second moment; mean divides it by a factor's long side, as the authors' code does, whose "
        "learning rates then fit.",
        Choice(("sum", "mean")),
        advanced=True,
    ),
    "ns_steps": Declared(
        "Newton–Schulz steps",
        "Iterations that make the step orthogonal. More is more exact.",
        FROM_ONE,
        MUON,
        unit="steps",
    ),
    "ns_dtype": Declared(
        "Newton–Schulz precision",
        "Dtype of these iterations. bfloat16 is faster on a GPU and loses the small singular values of a step.",
        Choice(("float32", "bfloat16")),
        MUON,
        advanced=True,
    ),
    "accelerated_ns": Declared(
        "Accelerated Newton–Schulz",
        "Uses Chebyshev coefficients that converge in fewer iterations.",
        section=MUON,
        advanced=True,
    ),
    "rms_rescaling": Declared(
        "RMS rescaling",
        "Scales steps to the size of Adam's, so that Adam's learning rates fit.",
        Choice((None, False, True)),
        MUON,
    ),
    "normuon_variant": Declared("NorMuon", "Evens out the size of the step over the rows.", section=MUON),
    "beta2_normuon": Declared("NorMuon beta 2", "Averaging factor of those row sizes.", SHARE, MUON, advanced=True),
    "low_rank_ortho": Declared(
        "Low-rank orthogonalisation",
        "Makes only a random low-rank part of the step orthogonal: faster for large matrices.",
        section=MUON,
        advanced=True,
    ),
    "ortho_rank": Declared("Orthogonalisation rank", "Rank of that part.", FROM_ONE, MUON, advanced=True),
    "approx_mars": Declared(
        "MARS-M", "Corrects each gradient by its change since the last step.", section=MUON, advanced=True
    ),
    "MuonWithAuxAdam": Declared(
        "Auxiliary Adam",
        "Trains vectors, inputs and outputs with Adam and only hidden matrices with Muon.",
        section=MUON,
    ),
    "muon_hidden_layers": Declared(
        "Muon layers",
        "Comma-separated parts of the names of layers that Muon trains. null: the model's blocks.",
        Text(),
        MUON,
        advanced=True,
    ),
    "muon_adam_regex": Declared(
        "Layer patterns", "Reads `muon_hidden_layers` as regular expressions.", section=MUON, advanced=True
    ),
    "muon_adam_lr": Declared(
        "Adam learning rate", "Learning rate of the auxiliary Adam.", Numbers(below=True, optional=True), MUON
    ),
    "muon_adam_config": Declared(
        "Auxiliary Adam options",
        "Options of the Adam that trains what Muon does not. null: its defaults.",
        Options(),
        MUON,
        advanced=True,
    ),
    "d0": Declared("First distance", "First guess of the learning rate that Prodigy finds.", POSITIVE, PRODIGY),
    "d_coef": Declared(
        "Distance factor",
        "Multiplies the learning rate that Prodigy finds; the knob to turn there.",
        POSITIVE,
        PRODIGY,
    ),
    "beta3": Declared(
        "Beta 3",
        "Averaging factor of Prodigy's distance. null: the square root of beta 2.",
        Numbers(high=1, below=True, optional=True),
        PRODIGY,
        advanced=True,
    ),
    "growth_rate": Declared(
        "Growth rate",
        "Largest growth of Prodigy's estimate in one step; inf: no limit.",
        Numbers(low=1),
        PRODIGY,
    ),
    "safeguard_warmup": Declared(
        "Safeguard warm-up",
        "Keeps a warm-up from spoiling Prodigy's estimate. Use with a warm-up.",
        section=PRODIGY,
    ),
    "slice_p": Declared(
        "Slice", "Prodigy looks at every n-th weight for its estimate; larger needs less memory.", FROM_ONE, PRODIGY
    ),
    "prodigy_steps": Declared(
        "Prodigy steps", "Stops Prodigy's estimate after this many steps; 0: never.", COUNT, PRODIGY, unit="steps"
    ),
    "d_limiter": Declared(
        "Distance limiter", "Keeps Prodigy's estimate from rising too fast at the start.", section=PRODIGY
    ),
}


def check_values(options: Mapping[str, Any]) -> None:
    """ValueError for the first value that is not allowed: option, value and what is."""
    for name, value in options.items():
        allowed = DECLARED[name].allowed if name in DECLARED else BOOLEAN
        if not allowed.allows(value):
            raise ValueError(f"{name}: found {as_json(value)}, expected {allowed}.")
