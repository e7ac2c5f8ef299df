"""Our rules against other implementations of the same formulas, over 200 steps.

adv_optm 2.5.16 and torch run the same model; where they round more coarsely than we do or leave a paper's formula,
references in float64 that are written out below from the papers' equations take their place. Where ours differs from
adv_optm on purpose, docs/optimizers.md says how and why.

Tolerances. Both sides do the same operations but for their order, so each step adds a few roundings to each parameter,
relative to the largest of them. The gradients pull back to a target, which keeps such errors from growing; at worst
they add up. That is steps · eps(dtype) · max|p|: 2e-5 · max|p| in float32, and in float64, where any difference in a
formula shows, 4e-14 · max|p|.
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.features.sign import DECAY_STREAM, SIGN_STREAM
from scaled_optim.noise import base_key, step_keys, uniform_bits

import torch
from torch import Tensor, nn

import adv_optm
import pytest

STEPS = 200
# in float64
SHORT = 40
# two tall matrices of one shape, so that a stack holds more than one, a vector, and a kernel, which is a wide matrix
SHAPES = [(20, 12), (20, 12), (16,), (8, 4, 3, 3)]
# adv_optm has one Kourkoutas-β for all tensors of a shape, ours is each tensor's: the same where no shapes are equal
DISTINCT = SHAPES[1:]
LORA = [(4, 24), (24, 4), (4, 24), (24, 4)]
# adv_optm counts the length of a row or column of n numbers as 1/√n at least; here all are longer
LONG = [(30, 24), (30, 24), (16,), (24, 6, 2, 3)]
PEERS = {
    "ADAMW_ADV": adv_optm.AdamW_adv,
    "ADOPT_ADV": adv_optm.Adopt_adv,
    "PRODIGY_ADV": adv_optm.Prodigy_adv,
    "LION_ADV": adv_optm.Lion_adv,
    "SIGNSGD_ADV": adv_optm.SignSGD_adv,
    "MUON_ADV": adv_optm.Muon_adv,
    "ADAMUON_ADV": adv_optm.AdaMuon_adv,
    "SINKSGD_ADV": adv_optm.SinkSGD_adv,
}
RATES = {"PRODIGY_ADV": 1.0, "LION_ADV": 3e-3, "SIGNSGD_ADV": 3e-3, "SINKSGD_ADV": 3e-3}
RATE = 1e-2

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


# -- the model ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def problem(shapes: tuple[tuple[int, ...], ...]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[list[Tensor]]]:
    """Starts, targets, curvatures, and the noise of every step, in float64."""
    generator = torch.Generator().manual_seed(20)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    starts = [normal(shape) * 0.5 for shape in shapes]
    targets = [normal(shape) for shape in shapes]
    curvatures = [0.2 + torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    noise = [[normal(shape) * 0.5 for shape in shapes] for _ in range(STEPS)]
    return starts, targets, curvatures, noise


def gradient(shapes: list[tuple[int, ...]], place: int, step: int, p: Tensor) -> Tensor:
    """Of a quadratic with noise, rounded to the dtype of p. Every 37th step is a spike; the first parameter has none
    for three steps, as the down factor of a LoRA has not for one.
    """
    _, targets, curvatures, noise = problem(tuple(shapes))
    g = curvatures[place] * (p.double() - targets[place]) + noise[step][place]
    if place == 0 and step < 3:
        g = g * 0
    return (g * (6.0 if step % 37 == 36 else 1.0)).to(p.dtype)


def rate_at(rate: float, step: int) -> float:
    """Warm-up of ten steps, then a cosine to a tenth."""
    return rate * min(1.0, (step + 1) / 10) * (0.55 + 0.45 * math.cos(math.pi * step / STEPS))


def parameters(shapes: list[tuple[int, ...]], dtype: torch.dtype, lora: bool = False) -> list[nn.Parameter]:
    starts = problem(tuple(shapes))[0]
    made = [nn.Parameter(start.to(dtype, copy=True)) for start in starts]
    for place, parameter in enumerate(made if lora else []):
        # as adv_optm and as we are told what a parameter is
        down = place % 2 == 0
        setattr(parameter, "_is_lora_A" if down else "_is_lora_B", True)
        parameter.parameter_info = SimpleNamespace(role="LORA_DOWN" if down else "LORA_UP", name=f"layer {place // 2}")
    return made


def trajectory(
    make: Make,
    rate: float,
    dtype: torch.dtype,
    shapes: list[tuple[int, ...]] = SHAPES,
    *,
    lora: bool = False,
    steps: int = STEPS,
    along: Tensor | None = None,
) -> Tensor:
    """All parameters after every step, `[steps, elements]` in float64.

    Args:
        along: a trajectory on which the gradients are taken instead, and from which each step starts. Then the result
            holds single steps, and an error does not change what comes after it except through the state.
    """
    made = parameters(shapes, dtype, lora)
    optimizer = make(made)
    points = []
    for step in range(steps):
        if along is not None and step:
            restore(made, along[step - 1])
        for group in optimizer.param_groups:
            group["lr"] = rate_at(rate, step)
        for place, parameter in enumerate(made):
            parameter.grad = gradient(shapes, place, step, parameter.detach())
        optimizer.step()
        points.append(flat(made))
    return torch.stack(points)


def flat(made: Iterable[Tensor]) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in made])


@torch.no_grad()
def restore(made: list[nn.Parameter], point: Tensor) -> None:
    for parameter, values in zip(made, point.split([p.numel() for p in made]), strict=True):
        parameter.copy_(values.view(parameter.shape))


def before(shapes: list[tuple[int, ...]], points: Tensor) -> Tensor:
    """Where each step of a trajectory began, `[steps, elements]`."""
    return torch.cat([flat(problem(tuple(shapes))[0]).unsqueeze(0), points[:-1]])


# -- both sides --------------------------------------------------------------------------------------------------------


def ours(rule: str, options: Mapping[str, Any]) -> Make:
    return lambda made: BatchedOptimizer(made, rule, RATES.get(rule, RATE), **options)


def peer(rule: str, options: Mapping[str, Any]) -> Make:
    """adv_optm's optimizer with the same options under its own names."""
    return lambda made: PEERS[rule](made, lr=RATES.get(rule, RATE), **peer_options(rule, options))


def peer_options(rule: str, options: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(options)
    first, second = {"ADOPT_ADV": (0.9, 0.9999), "LION_ADV": (0.9, 0.99), "ADAMUON_ADV": (0.95, 0.95)}.get(
        rule, (0.9, 0.999)
    )
    if rule == "MUON_ADV" or rule == "ADAMUON_ADV":
        given.pop("MuonWithAuxAdam", None)
        adam = dict(given.pop("muon_adam_config", None) or {})
        given |= {"adam_betas": (adam.pop("beta1", 0.9), adam.pop("beta2", 0.99))}
        given |= {f"adam_{key}": value for key, value in adam.items()}
        given |= {"adam_weight_decay": given.get("weight_decay", 0.0)}
    if "auto_kappa_p" in given and rule == "ADAMUON_ADV":
        given["auto_projection"] = given.pop("auto_kappa_p")
    if "beta1" in given and rule != "MUON_ADV" or "beta2" in given:
        given["betas"] = given.pop("beta1", first), given.pop("beta2", second)
    if given.pop("scaled_eps", False):
        assert given["eps"] == 1.0
        given["eps"] = None
    if given.get("centered_wd"):
        given["centered_wd_mode"] = "full"
    return given


def rounding(dtype: torch.dtype, points: Tensor) -> float:
    """Largest error from rounding alone, see the top."""
    return STEPS * torch.finfo(dtype).eps * points.abs().max().item()


def assert_same(found: Tensor, expected: Tensor, tolerance: float) -> None:
    moved = (expected[-1] - expected[0]).abs()
    assert moved.max() > 1000 * tolerance, "nothing happened that could differ"
    assert (found - expected).abs().max().item() <= tolerance


# -- adv_optm ----------------------------------------------------------------------------------------------------------

ADAM_FEATURES = [
    {"weight_decay": 0.1},
    {"nesterov": True, "nesterov_coef": 0.8},
    {"use_atan2": True, "weight_decay": 0.1},
    {"normed_momentum": True},
    {"normed_momentum": True, "use_atan2": True, "nesterov": True},
    {"use_bias_correction": False, "eps": 1.0, "scaled_eps": True},
    {"beta1": 0.0},
    {"nnmf_factor": True},
    {"factored_2nd": True},
    {"orthogonal_gradient": "flattened"},
    {"kourkoutas_beta": True},
    {"kourkoutas_beta": True, "k_warmup_steps": 50, "lora": True},
    {"fisher_wd": True, "weight_decay": 0.1},
    {"centered_wd": 0.1},
    {"centered_wd": 0.1, "weight_decay": 0.05, "cautious_wd": True, "fisher_wd": True},
]
DOUBT = {"momentum": 0.9, "normed_momentum": True, "snr_cond": True}
CASES: list[tuple[str, dict[str, Any]]] = [
    *(("ADAMW_ADV", options) for options in ADAM_FEATURES),
    ("ADOPT_ADV", {}),
    ("ADOPT_ADV", {"use_atan2": True, "weight_decay": 0.1}),
    ("ADOPT_ADV", {"kourkoutas_beta": True, "beta2": 0.999, "lora": True}),
    ("ADOPT_ADV", {"nnmf_factor": True}),
    ("ADOPT_ADV", {"fisher_wd": True, "weight_decay": 0.1, "centered_wd": 0.1}),
    ("LION_ADV", {"weight_decay": 0.1, "cautious_wd": True}),
    ("LION_ADV", {"auto_kappa_p": True}),
    ("LION_ADV", {"nnmf_factor": True}),
    ("SIGNSGD_ADV", {"nesterov": True, "weight_decay": 0.1}),
    ("SIGNSGD_ADV", {"momentum": 0.0}),
    ("SIGNSGD_ADV", {"normed_momentum": True}),
    ("SIGNSGD_ADV", {"nnmf_factor": True}),
    ("SIGNSGD_ADV", {"centered_wd": 0.1}),
    ("SIGNSGD_ADV", {"normed_momentum": True, "nesterov": True}),
    ("SIGNSGD_ADV", {"geometric_wd": True, "weight_decay": 0.1, "centered_wd": 0.1, "cautious_wd": True}),
    ("SIGNSGD_ADV", {**DOUBT, "geometric_wd": True, "weight_decay": 0.1, "centered_wd": 0.1}),
    ("SIGNSGD_ADV", {**DOUBT, "nesterov": True, "nesterov_coef": 0.7, "nnmf_factor": True}),
    ("SINKSGD_ADV", {"momentum": 0.0}),
    ("SINKSGD_ADV", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SINKSGD_ADV", {"momentum": 0.9, "sinkhorn_iterations": 2, "orthogonal_sinkhorn": True, "shapes": LONG}),
    ("SINKSGD_ADV", {"momentum": 0.9, "geometric_wd": True, "weight_decay": 0.1, "cautious_wd": True}),
    ("SINKSGD_ADV", {**DOUBT, "nesterov": True}),
    ("SINKSGD_ADV", {**DOUBT, "geometric_wd": True, "weight_decay": 0.1}),
    ("SINKSGD_ADV", {**DOUBT, "geometric_wd": True, "weight_decay": 0.1, "centered_wd": 0.1, "shapes": [(16,)]}),
    ("SINKSGD_ADV", {"momentum": 0.9, "nnmf_factor": True}),
    *(
        (rule, {"orthogonal_gradient": "iterative", "shapes": LONG})
        for rule in ("ADAMW_ADV", "LION_ADV", "SIGNSGD_ADV")
    ),
    ("SINKSGD_ADV", {"momentum": 0.9, "orthogonal_gradient": "iterative", "shapes": LONG}),
]


def name_of(case: tuple[str, Mapping[str, Any]]) -> str:
    rule, options = case
    return "-".join([rule, *(key if value is True else f"{key}={value}" for key, value in options.items())])


def compare(rule: str, options: Mapping[str, Any], dtype: torch.dtype, tolerance: float = 1.0) -> None:
    """The trajectories are the same; the tolerance is in units of `rounding`."""
    options = dict(options)
    lora = options.pop("lora", False)
    shapes = options.pop("shapes", LORA if lora else DISTINCT if options.get("kourkoutas_beta") else SHAPES)
    # what shows in float64 shows at once
    steps = STEPS if dtype == torch.float32 else SHORT
    rate = RATES.get(rule, RATE)
    expected = trajectory(peer(rule, options), rate, dtype, shapes, lora=lora, steps=steps)
    found = trajectory(ours(rule, options), rate, dtype, shapes, lora=lora, steps=steps)
    assert_same(found, expected, tolerance * rounding(dtype, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_equals_adv_optm(case, dtype):
    rule, options = case
    inexact = {
        # in float32 there, whatever the parameters are: β₂ (1 − β₂ ≈ 1e-3 loses three more digits), the projection
        "kourkoutas_beta": 1e7,
        "orthogonal_gradient": 1e6,
        # in float32 on both sides: the factors
        "nnmf_factor": 1e7,
        "factored_2nd": 1e7,
    }
    loose = max((value for key, value in inexact.items() if options.get(key)), default=1.0)
    compare(rule, options, dtype, loose if dtype == torch.float64 else 1.0)


def test_lion_and_signsgd_equal_adv_optm_to_the_bit():
    """Without decay there is nothing to round differently: the averages are the same operations, a sign is exact."""
    for rule in ("LION_ADV", "SIGNSGD_ADV"):
        expected = trajectory(peer(rule, {}), RATES[rule], torch.float32)
        assert torch.equal(trajectory(ours(rule, {}), RATES[rule], torch.float32), expected)


def test_factored_steps_do_not_grow_as_gradients_shrink():
    """adv_optm divides a factor by its total or by 1e-12, whichever is larger. Second moments of 6144 gradients of 1e-8
    sum up to less, so what comes back is too small, and the step that is divided by its root too large: 27 times here.
    """
    sizes = {}
    for size in (1e-3, 1e-8):
        for kind, make in (
            ("ours", lambda made: BatchedOptimizer(made, "ADAMW_ADV", 1.0, eps=1e-15, factored_2nd=True)),
            ("peer", lambda made: adv_optm.AdamW_adv(made, lr=1.0, eps=1e-15, factored_2nd=True)),
        ):
            generator, p = torch.Generator().manual_seed(0), nn.Parameter(torch.zeros(64, 96))
            optimizer = make([p])
            for _ in range(20):
                p.data.zero_()
                p.grad = size * torch.randn(p.shape, generator=generator)
                optimizer.step()
            sizes[kind, size] = p.detach().square().mean().sqrt().item()
    assert sizes["ours", 1e-8] == pytest.approx(sizes["ours", 1e-3], rel=1e-3)
    assert sizes["peer", 1e-3] == pytest.approx(sizes["ours", 1e-3], rel=1e-3)
    assert sizes["peer", 1e-8] > 20 * sizes["ours", 1e-8]


STOCHASTIC = [
    ("LION_ADV", {"stochastic_sign": True}),
    ("LION_ADV", {"stochastic_sign": True, "nnmf_factor": True}),
    ("SIGNSGD_ADV", {"stochastic_sign": True, "geometric_wd": True, "weight_decay": 0.1}),
    ("SIGNSGD_ADV", {"stochastic_sign": True, **DOUBT, "geometric_wd": True, "weight_decay": 0.1}),
]


@pytest.mark.parametrize("case", STOCHASTIC, ids=name_of)
def test_stochastic_signs_equal_adv_optm_with_the_same_noise(case, monkeypatch):
    """adv_optm draws from a generator, ours from (seed, step, parameter, purpose); here adv_optm is given our numbers.
    A number that is exactly zero, as in the first steps of the first parameter, has no random sign with us. Kernels are
    left out: adv_optm takes the largest of each over one of four dimensions.
    """
    rule, options = case
    calls: list[int] = []
    matrices = [place for place, shape in enumerate(SHAPES[:3]) if len(shape) > 1]
    each = 2 if options.get("geometric_wd") else 1

    def ours_as_theirs(source: Tensor) -> Tensor:
        step, place = divmod(len(calls) // each, len(matrices))
        key = torch.tensor([base_key(0, matrices[place], 0)], dtype=torch.int32)
        stream = (SIGN_STREAM, DECAY_STREAM)[len(calls) % each]
        bits = uniform_bits(step_keys(step_keys(key, stream), step + 1), source.numel())
        calls.append(step)
        return (bits >> 8).to(source.dtype).view(source.shape) * 2.0**-23 * (source != 0)

    monkeypatch.setattr(adv_optm.util.param_update, "_get_random_noise_for_sso", ours_as_theirs)
    compare(rule, {**options, "shapes": SHAPES[:3]}, torch.float32)
    assert calls[-1] == STEPS - 1


PRODIGY = [
    {},
    {"use_atan2": True, "weight_decay": 0.01},
    {"safeguard_warmup": True},
    {"d_limiter": True, "growth_rate": 1.05},
    {"prodigy_steps": 30, "slice_p": 1},
    {"kourkoutas_beta": True},
    {"nnmf_factor": True, "fisher_wd": True, "weight_decay": 0.01},
]


@pytest.mark.parametrize("options", PRODIGY, ids=lambda options: name_of(("PRODIGY_ADV", options)))
def test_prodigy_equals_adv_optm(options):
    """d is a ratio of sums over all parameters, which adv_optm adds up in float32 one after the other. At first the
    numerator is a difference of large terms, and d passes its error on to every later step: by 5e-5 of d after 200
    steps. So 1e-3 of the way; `test_prodigy_equals_the_paper` is the strict one.
    """
    options = {"d0": 1e-4, **options}
    shapes = DISTINCT if options.get("kourkoutas_beta") else SHAPES
    expected = trajectory(peer("PRODIGY_ADV", options), 1.0, torch.float32, shapes)
    found = trajectory(ours("PRODIGY_ADV", options), 1.0, torch.float32, shapes)
    way = (expected - before(shapes, expected)[0]).abs().max().item()
    assert way > 0.01, "d stayed where it was"
    assert (found - expected).abs().max().item() <= 1e-3 * way


BFLOAT16 = [
    ("ADAMW_ADV", {}),
    ("ADAMW_ADV", {"nesterov": True, "use_atan2": True}),
    ("ADOPT_ADV", {}),
    ("SIGNSGD_ADV", {}),
]


@pytest.mark.parametrize("case", BFLOAT16, ids=name_of)
def test_bfloat16_equals_adv_optm(case):
    """Without stochastic rounding, with state in float32 on both sides: then a step without decay rounds one float32
    number once, so that all but ties within float32's own rounding (a share of 2⁻¹⁶ of all) are the same. These would
    make the trajectories part, so every step begins where ours did.

    ADOPT there starts from the first gradient's square in bfloat16, so that √v is off by up to 2⁻¹⁰ for long.

    `auto` is float32 for us and bfloat16 for adv_optm, and its decay is rounded by itself: no equality there.
    """
    rule, options = case
    options = {**options, "state_precision": "fp32", "stochastic_rounding": False}
    rate = RATES.get(rule, RATE)
    expected = trajectory(ours(rule, options), rate, torch.bfloat16)
    found = trajectory(peer(rule, options), rate, torch.bfloat16, along=expected)
    assert (expected[-1] - expected[0]).abs().max() > 0.1
    inexact = 2**-10 if rule == "ADOPT_ADV" else 0.0
    assert (found != expected).double().mean().item() <= 1e-3 + 4 * inexact
    # a neighbour at most; ADOPT's u is below 4, as its clip is
    gap = 2**-7 * torch.maximum(found.abs(), expected.abs())
    assert ((found - expected).abs() <= gap + 4 * rate * inexact).all()


# -- the Muon family ---------------------------------------------------------------------------------------------------


def exact_newton_schulz(
    G: Tensor,  # noqa: N803
    steps: int = 5,
    eps: float = 1e-7,
    coeffs: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    cns: bool = False,
    **others: Any,
) -> Tensor:
    """What Newton–Schulz does to the singular values of one matrix, done to them in float64: x/‖x‖, then for each step
    σ ← aσ + bσ³ + cσ⁵, or CANS' cubic (arXiv 2506.10935, with its δ from the shape).
    """
    u, sigma, v = torch.linalg.svd(G.double(), full_matrices=False)
    sigma = sigma / max(sigma.norm().item(), eps)
    m, n = G.shape
    low, high = max(1 / math.sqrt(m * n), abs(1 / math.sqrt(m) - 1 / math.sqrt(n))), 1.0
    for _ in range(steps):
        if not cns:
            sigma = coeffs[0] * sigma + coeffs[1] * sigma**3 + coeffs[2] * sigma**5
            continue
        # the extremum of 3qσ − σ³ on the interval is at √q, and its values at both ends agree
        q = (low**2 + low * high + high**2) / 3
        top, end = 2 * q**1.5, 3 * q * low - low**3
        sigma = 2 / (top + end) * (3 * q * sigma - sigma**3)
        low, high = 2 * end / (top + end), 2 * top / (top + end)
    return ((u * sigma) @ v).to(G.dtype)


MATRICES = [(12, 20), (12, 20), (20, 12), (16,)]
# adv_optm orthogonalises the near-square view of a factored momentum: with these shapes that is the matrix itself
SQUARE = [(16, 15), (16, 15), (9, 9), (16,)]
MUON = [
    ("MUON_ADV", {"weight_decay": 0.1}),
    ("MUON_ADV", {"normuon_variant": True}),
    ("MUON_ADV", {"approx_mars": True}),
    ("MUON_ADV", {"accelerated_ns": True, "nesterov_coef": 0.8}),
    ("MUON_ADV", {"rms_rescaling": False, "nesterov": False, "muon_adam_config": {"beta1": 0.8, "use_atan2": True}}),
    ("ADAMUON_ADV", {}),
    ("ADAMUON_ADV", {"normuon_variant": True, "approx_mars": True}),
    ("ADAMUON_ADV", {"use_atan2": True, "rms_rescaling": False, "shapes": MATRICES}),
    ("ADAMUON_ADV", {"auto_kappa_p": False, "beta1": 0.9, "beta2": 0.99}),
    ("ADAMUON_ADV", {"nnmf_factor": True, "shapes": SQUARE}),
]


@pytest.mark.parametrize("case", MUON, ids=name_of)
def test_muon_equals_adv_optm_but_for_its_bfloat16(case, monkeypatch):
    """adv_optm with a Newton–Schulz that does not round to bfloat16. The quintic multiplies small singular values, and
    their errors, by up to 3.4445⁵ ≈ 485.
    """
    rule, options = case
    monkeypatch.setattr(sys.modules[PEERS[rule].__module__], "newton_schulz", exact_newton_schulz)
    compare(rule, options, torch.float32, 10.0)
    # the factors, and there NorMuon's row sums too, are float32
    single = options.get("nnmf_factor") or options.get("normuon_variant")
    compare(rule, options, torch.float64, 1e8 if single else 485.0)


@pytest.mark.parametrize("rule", ["MUON_ADV", "ADAMUON_ADV"])
def test_muon_equals_adv_optm(rule):
    """As it is, step by step from where ours began: bfloat16 rounds to 2⁻⁹, and each of five iterations does so several
    times over, with gains above 1: a few percent.
    """
    expected = trajectory(ours(rule, {}), RATE, torch.float32)
    found = trajectory(peer(rule, {}), RATE, torch.float32, along=expected)
    start = before(SHAPES, expected)
    error = (found - expected).norm(dim=1) / (expected - start).norm(dim=1)
    assert error.max().item() <= 0.1
    assert error.mean().item() <= 0.05


@pytest.mark.parametrize("options", [{"adjust_lr_fn": "original"}, {"adjust_lr_fn": "match_rms_adamw"}], ids=str)
def test_muon_equals_torch(options):
    """Also in bfloat16. `match_rms_adamw` takes for granted what `rms_rescaling` measures: that all singular values
    are 1. Muon's quintic leaves them between 0.7 and 1.2, so only directions can be compared.
    """
    shapes = [(12, 20), (12, 20), (20, 12)]
    plain = options["adjust_lr_fn"] == "original"
    make = ours("MUON_ADV", {"rms_rescaling": False if plain else None, "weight_decay": 0.1 if plain else 0.0})
    expected = trajectory(make, RATE, torch.float32, shapes)
    decay = 0.1 if plain else 0.0
    found = trajectory(
        lambda made: torch.optim.Muon(made, lr=RATE, weight_decay=decay, **options), RATE, torch.float32, shapes,
        along=expected,
    )  # fmt: skip
    start = before(shapes, expected)
    x, y = found - start, expected - start
    if not plain:
        sizes = [12 * 20] * 3
        x, y = (torch.cat([part / part.norm(dim=1, keepdim=True) for part in z.split(sizes, dim=1)], 1) for z in (x, y))
        # the first has no gradient for three steps
        x, y = x[3:], y[3:]
    error = (x - y).norm(dim=1) / y.norm(dim=1)
    assert error.max().item() <= 0.1
    assert error.mean().item() <= 0.05


# -- torch -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_plain_adamw_equals_torch(decay, dtype):
    expected = trajectory(lambda made: torch.optim.AdamW(made, RATE, weight_decay=decay), RATE, dtype)
    found = trajectory(ours("ADAMW_ADV", {"weight_decay": decay}), RATE, dtype)
    assert_same(found, expected, rounding(dtype, expected))


# -- the papers --------------------------------------------------------------------------------------------------------

State = dict[str, Any]


class Written:
    """An optimizer from its equations: `update(state, p, g, lr, t)` gives the new p; t counts from 1."""

    def __init__(self, made: list[nn.Parameter], update: Callable[[State, Tensor, Tensor, float, int], Tensor]) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": made, "lr": RATE}]
        self.states: list[State] = [{} for _ in made]
        self.update, self.t = update, 0

    @torch.no_grad()
    def step(self) -> None:
        self.t += 1
        group = self.param_groups[0]
        for state, p in zip(self.states, group["params"], strict=True):
            p.copy_(self.update(state, p.detach().clone(), p.grad, group["lr"], self.t))


def ademamix(state: State, p: Tensor, g: Tensor, lr: float, t: int) -> Tensor:
    """arXiv 2409.03137, algorithm 1, without its schedules of α and β₃."""
    beta1, beta2, beta3, alpha, eps, decay = 0.9, 0.999, 0.99, 5.0, 1e-8, 0.1
    m1 = state["m1"] = beta1 * state.get("m1", 0) + (1 - beta1) * g
    m2 = state["m2"] = beta3 * state.get("m2", 0) + (1 - beta3) * g
    nu = state["nu"] = beta2 * state.get("nu", 0) + (1 - beta2) * g**2
    m1_hat, nu_hat = m1 / (1 - beta1**t), nu / (1 - beta2**t)
    return p - lr * ((m1_hat + alpha * m2) / (nu_hat.sqrt() + eps) + decay * p)


def simplified_ademamix(state: State, p: Tensor, g: Tensor, lr: float, t: int) -> Tensor:
    """arXiv 2502.02431: m ← β₁m + g, no mean and so no bias, and the gradient with weight α."""
    beta1, beta2, alpha, eps = 0.9, 0.999, 10.0, 1e-8
    m = state["m"] = beta1 * state.get("m", 0) + g
    nu = state["nu"] = beta2 * state.get("nu", 0) + (1 - beta2) * g**2
    return p - lr * (alpha * g + m) / ((nu / (1 - beta2**t)).sqrt() + eps)


def kourkoutas(state: State, p: Tensor, g: Tensor, lr: float, t: int) -> Tensor:
    """arXiv 2508.12996 with the norm of the step before, as adv_optm and ours: s = x/(1 + x), x = ‖g‖/(r + τ)."""
    beta1, low, high, alpha, tiny, eps = 0.9, 0.9, 0.999, 0.95, 1e-9, 1e-8
    last = state.get("norm", torch.zeros((), dtype=p.dtype))
    r = state["r"] = alpha * state.get("r", 0) + (1 - alpha) * last
    ratio = last / (r + tiny)
    beta2 = high - (high - low) * ratio / (1 + ratio)
    state["norm"] = g.norm()
    m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
    v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    return p - lr * (m / (1 - beta1**t)) / ((v / (1 - high**t)).sqrt() + eps)


def adopt(state: State, p: Tensor, g: Tensor, lr: float, t: int, nesterov: float | None = None) -> Tensor:
    """arXiv 2411.02853, algorithm 2 with clipping: c = k^¼, the first gradient only initialises v."""
    beta1, beta2, eps = 0.9, 0.9999, 1e-12
    if t == 1:
        state["v"], state["m"] = g**2, torch.zeros_like(g)
        return p
    clip = (t - 1) ** 0.25
    normed = (g / state["v"].sqrt().clamp(min=eps)).clamp(-clip, clip)
    m = state["m"] = beta1 * state["m"] + (1 - beta1) * normed
    state["v"] = beta2 * state["v"] + (1 - beta2) * g**2
    return p - lr * (m if nesterov is None else nesterov * m + (1 - nesterov) * normed)


def adopt_nesterov(state: State, p: Tensor, g: Tensor, lr: float, t: int) -> Tensor:
    return adopt(state, p, g, lr, t, nesterov=0.9)


PAPERS = {
    "AdEMAMix": (ademamix, "ADAMW_ADV", {"use_AdEMAMix": True, "beta3_ema": 0.99, "weight_decay": 0.1}),
    "simplified AdEMAMix": (simplified_ademamix, "ADAMW_ADV", {"Simplified_AdEMAMix": True, "alpha_grad": 10.0}),
    "Kourkoutas": (kourkoutas, "ADAMW_ADV", {"kourkoutas_beta": True}),
    "ADOPT": (adopt, "ADOPT_ADV", {"eps": 1e-12}),
    "ADOPT, Nesterov": (adopt_nesterov, "ADOPT_ADV", {"eps": 1e-12, "nesterov": True}),
}


@pytest.mark.parametrize("name", PAPERS)
def test_equals_the_paper(name):
    """ADOPT's paper has max(√v, ε) where ours has √v + ε: for ε = 1e-12 a relative 1e-12/√v of a step."""
    update, rule, options = PAPERS[name]
    expected = trajectory(lambda made: Written(made, update), RATE, torch.float64)
    found = trajectory(ours(rule, options), RATE, torch.float64)
    tolerance = 1e-9 if rule == "ADOPT_ADV" else rounding(torch.float64, expected)
    assert_same(found, expected, tolerance)
    # and float32 as far as it goes
    found = trajectory(ours(rule, options), RATE, torch.float32, steps=SHORT)
    assert_same(found, expected[:SHORT], rounding(torch.float32, expected))


class WrittenProdigy(Written):
    """arXiv 2306.06101, the Adam version with decoupled decay, and optionally Nesterov momentum of d·g."""

    def __init__(self, made: list[nn.Parameter], nesterov: bool) -> None:
        super().__init__(made, ademamix)
        self.nesterov, self.d, self.r = nesterov, 1e-4, 0.0
        for state, p in zip(self.states, made, strict=True):
            zeros = torch.zeros_like(p.detach())
            state |= {"start": p.detach().clone(), "m": zeros, "v": zeros, "s": zeros}

    @torch.no_grad()
    def step(self) -> None:
        beta1, beta2, eps, d = 0.9, 0.999, 1e-8, self.d
        root, lr, new = math.sqrt(beta2), self.param_groups[0]["lr"], 0.0
        for state, p in zip(self.states, self.param_groups[0]["params"], strict=True):
            g = p.grad
            state["m"] = beta1 * state["m"] + (1 - beta1) * d * g
            state["v"] = beta2 * state["v"] + (1 - beta2) * d**2 * g**2
            new += (g * (state["start"] - p)).sum().item()
            state["s"] = root * state["s"] + (1 - root) * lr * d**2 * g
            m = beta1 * state["m"] + (1 - beta1) * d * g if self.nesterov else state["m"]
            p.sub_(lr * d * (m / (state["v"].sqrt() + d * eps) + 0.01 * p))
        self.r = root * self.r + (1 - root) * lr * d**2 * new
        self.d = max(d, self.r / sum(state["s"].abs().sum().item() for state in self.states))


@pytest.mark.parametrize("nesterov", [False, True])
def test_prodigy_equals_the_paper(nesterov):
    """An error of d grows with d, which goes from 1e-4 to what suits the problem: by that ratio, 1e3."""
    options = {"d0": 1e-4, "slice_p": 1, "nesterov": nesterov, "weight_decay": 0.01}
    expected = trajectory(lambda made: WrittenProdigy(made, nesterov), 1.0, torch.float64)
    found = trajectory(ours("PRODIGY_ADV", options), 1.0, torch.float64)
    assert_same(found, expected, 1e3 * rounding(torch.float64, expected))


def test_fisher_decay_with_atan2_survives_a_zero_gradient():
    """The divisor has no ε then: the down factor of a LoRA has no gradient at the first step."""
    for rule in ("ADAMW_ADV", "ADOPT_ADV", "PRODIGY_ADV"):
        made = [nn.Parameter(torch.linspace(-1, 1, 24).view(4, 6)), nn.Parameter(torch.zeros(4, 6))]
        optimizer = BatchedOptimizer(made, rule, 0.01, use_atan2=True, fisher_wd=True, weight_decay=0.1)
        for size in (0.0, 1.0):
            for p in made:
                p.grad = torch.full((4, 6), size)
            optimizer.step()
            assert all(p.isfinite().all() for p in made), rule
