"""Geometries of steps: Sinkhorn, random signs, what a momentum of signs doubts, OrthoGrad by rows and columns."""

import math
from types import SimpleNamespace

from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.features.orthogonal_gradient import orthogonal_gradient
from scaled_optim.features.sinkhorn import sinkhorn, structured_pull
from scaled_optim.roles import ROLES

import torch
from torch import Tensor, nn

import pytest

SHAPES = [(16, 64), (64, 16), (40, 40), (3, 200)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sides(x: Tensor) -> tuple[Tensor, Tensor]:
    """RMS of rows and of columns."""
    return x.square().mean(2).sqrt(), x.square().mean(1).sqrt()


# -- Sinkhorn ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_and_columns_have_rms_1(shape):
    """The side normalised last to rounding, the other ever better; from rows and columns of sizes over four decades."""
    x = normal(2, *shape) * 10 ** normal(2, shape[0], 1, seed=1) * 10 ** normal(2, 1, shape[1], seed=2)
    errors = []
    for iterations in (1, 5, 20):
        rows, cols = sides(sinkhorn(x, iterations))
        last, other = (rows, cols) if shape[0] > shape[1] else (cols, rows)
        torch.testing.assert_close(last, torch.ones_like(last), rtol=1e-12, atol=0)
        errors.append((other - 1).abs().max().item())
    assert errors[0] > 3 * errors[1] and errors[1] <= 0.1 and errors[2] <= 1e-4
    # what the rows and columns had of sizes is gone altogether
    torch.testing.assert_close(sinkhorn(x, 60), sinkhorn(normal(2, *shape), 60), rtol=1e-6, atol=1e-6)


def test_the_size_of_gradients_does_not_count():
    x = normal(3, 12, 30, dtype=torch.float32)
    for size in (1e-9, 1e9):
        torch.testing.assert_close(sinkhorn(x * size, 5), sinkhorn(x, 5), rtol=1e-5, atol=1e-5)


def test_zeros_stay_zero_and_what_is_not_a_number_spreads():
    x = normal(2, 8, 12)
    x[0, 3], x[0, :, 5] = 0, 0
    found = sinkhorn(x, 5)
    assert not found[0, 3].any() and not found[0, :, 5].any() and found.isfinite().all()
    assert not sinkhorn(torch.zeros(1, 4, 5), 5).any()
    x[1, 2, 2] = torch.nan
    found = sinkhorn(x, 5)
    assert found[0].isfinite().all() and found[1].isnan().all()


def test_orthogonal_sinkhorn_leaves_rows_and_columns_of_the_parameter():
    x, p = normal(2, 30, 50), normal(2, 30, 50, seed=1)
    plain, found = sinkhorn(x, 5), sinkhorn(x, 5, p)
    rows, cols = ((found * p).sum(dim).abs() for dim in (2, 1))
    # columns came last
    assert cols.max() <= 1e-10 and rows.max() <= 0.1 * (plain * p).sum(2).abs().max()
    torch.testing.assert_close(sides(found)[1], torch.ones(2, 50).double(), rtol=1e-9, atol=0)


def test_vectors_step_by_their_signs():
    for shape, role in (((7,), None), ((7, 1), "DORA_SCALE"), ((1, 7), "HIDDEN"), ((2, 7), "VECTOR")):
        p = nn.Parameter(torch.zeros(shape))
        if role:
            p.parameter_info = SimpleNamespace(role=role, name="p")
        p.grad = normal(*shape, dtype=torch.float32)
        BatchedOptimizer([p], "SINKSGD_ADV", 0.5).step()
        assert torch.equal(p.detach(), -0.5 * p.grad.sign())


# -- doubt -------------------------------------------------------------------------------------------------------------


def direction_after(rule: str, gradients: list[Tensor], **options: object) -> Tensor:
    """The last step, divided by the learning rate."""
    p = nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = BatchedOptimizer([p], rule, 1.0, normed_momentum=True, momentum=0.9, **options)
    for g in gradients:
        before, p.grad = p.detach().clone(), g.clone()
        optimizer.step()
    return before - p.detach()


@pytest.mark.parametrize("rule", ["SIGNSGD_ADV", "SINKSGD_ADV"])
def test_snr_cond_steps_far_where_gradients_agree(rule):
    """The upper half of the rows has the same gradient always, the lower half a new one each time: a signal of 1 and
    none. Of the first m → 1, so u → (4/π)·atan(∞) = 2; of the second m² is about (1 − μ)/(1 + μ) = 1/19, and u is
    (4/π)·m. Sinkhorn's columns are half signal, half noise, which makes u by ½^(−¼) larger.
    """
    same = normal(6, 40, dtype=torch.float32)
    steps = [torch.cat([same, normal(6, 40, seed=k + 1, dtype=torch.float32)]) for k in range(60)]
    plain, found = (direction_after(rule, steps, snr_cond=on) for on in (False, True))
    size = [[half.square().mean().sqrt().item() for half in u.split(6)] for u in (plain, found)]
    # Sinkhorn's numbers of a row differ in size, so that their mean atan is below that of the mean
    assert size[1][0] > 1.25 * size[0][0]
    half = 1.0 if rule == "SIGNSGD_ADV" else 0.5**-0.25
    assert size[1][1] == pytest.approx(4 / math.pi * half * size[0][1], rel=0.15)
    if rule == "SIGNSGD_ADV":
        assert found[:6].abs().min() > 1.9


def test_nesterov_of_normed_momentum_trusts_a_gradient_as_far_as_the_momentum_goes():
    """u = c·m + (1 − c)·|m₋|·sign(g): after 30 equal signs and one against them."""
    g = torch.ones(4, 3)
    u = direction_after("SIGNSGD_ADV", [*[g] * 30, -g], nesterov=True, nesterov_coef=0.6)
    before = 1 - 0.9**30
    m = 0.9 * before - 0.1
    torch.testing.assert_close(u, torch.full_like(u, 0.6 * m - 0.4 * before))


@pytest.mark.parametrize("rule", ["SIGNSGD_ADV", "SINKSGD_ADV"])
def test_snr_cond_needs_normed_momentum(rule):
    for options in ({}, {"normed_momentum": True, "momentum": 0.0}):
        with pytest.raises(ValueError, match="^snr_cond: .*expected false"):
            BatchedOptimizer([nn.Parameter(torch.zeros(2))], rule, snr_cond=True, **options)


# -- random signs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["SIGNSGD_ADV", "LION_ADV"])
def test_the_mean_of_random_signs_is_what_they_are_drawn_from(rule):
    g = normal(6, 9, dtype=torch.float32)
    g[2, 4] = 0
    v = g / g.abs().amax(1, keepdim=True)
    v = v / v.abs().amax(0, keepdim=True)
    total, draws = torch.zeros_like(g), 4000
    p = nn.Parameter(torch.zeros_like(g))
    optimizer = BatchedOptimizer([p], rule, 1.0, stochastic_sign=True)
    for _ in range(draws):
        p.data.zero_()
        p.grad = g.clone()
        optimizer.step()
        signs = -p.detach()
        assert set(signs.unique().tolist()) <= {-1.0, 0.0, 1.0}
        total += signs
    # the largest in a row or column is certain, a zero stays zero; 5 standard deviations of the mean of signs
    assert (total[v.abs() == 1].abs() == draws).all() and total[2, 4] == 0
    assert (total / draws - v).abs().max() <= 5 / math.sqrt(draws)


def test_random_signs_do_not_freeze():
    with pytest.raises(ValueError, match="^freeze_on_flip: "):
        BatchedOptimizer([nn.Parameter(torch.zeros(2))], "LION_ADV", freeze_on_flip=True, stochastic_sign=True)


# -- decay in the geometry of the steps --------------------------------------------------------------------------------


def decay_of(rule: str, p: nn.Parameter, **options: object) -> Tensor:
    """What a step without gradient takes away of a parameter, for a decay of 1 times the learning rate of 1e-3."""
    before, p.grad = p.detach().clone(), torch.zeros_like(p)
    BatchedOptimizer([p], rule, 1e-3, geometric_wd=True, **options).step()
    return (before - p.detach()) / 1e-3


@pytest.mark.parametrize("rule", ["SIGNSGD_ADV", "LION_ADV"])
def test_geometric_decay_of_signed_rules_goes_along_signs(rule):
    """As long as plain decay's, with the same size for every number."""
    p = nn.Parameter(normal(7, 11))
    found = decay_of(rule, p, weight_decay=1.0)
    expected = p.detach().sign() * p.detach().square().mean().sqrt()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)
    # rounding of the difference, and p itself after the step


@pytest.mark.parametrize("rule", ["SIGNSGD_ADV", "SINKSGD_ADV"])
def test_geometric_decay_toward_the_start_goes_by_the_distance(rule):
    p = nn.Parameter(normal(5, 8))
    start = p.detach().clone()
    optimizer = BatchedOptimizer([p], rule, 1e-3, geometric_wd=True, centered_wd=1.0)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(p, start)
    away = normal(5, 8, seed=1)
    p.data.add_(away)
    before = p.detach().clone()
    optimizer.step()
    expected = structured_pull(away.unsqueeze(0))[0]
    if rule == "SIGNSGD_ADV":
        expected = away.sign() * away.square().mean().sqrt()
    torch.testing.assert_close((before - p.detach()) / 1e-3, expected, rtol=1e-9, atol=1e-9)


def test_geometric_decay_of_sinkhorn_is_stronger_for_larger_rows():
    """By the root of their size; scaled so that the factor's mean is 1."""
    x = normal(1, 40, 60)
    x = x / x.norm(dim=2, keepdim=True)
    x[:, :20] *= 16
    found = structured_pull(x) / x
    assert found.mean().item() == pytest.approx(1)
    ratio = found[0, :20].mean() / found[0, 20:].mean()
    assert ratio.item() == pytest.approx(4)
    zero = structured_pull(torch.zeros(1, 3, 4))
    assert not zero.any()


# -- OrthoGrad by rows and columns -------------------------------------------------------------------------------------


def projected(g: Tensor, p: Tensor, mode: str) -> Tensor:
    s = SimpleNamespace(options={"orthogonal_gradient": mode}, role=ROLES["HIDDEN"], vector=False, g=g, p=p)
    orthogonal_gradient(s)
    return s.g


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (16, 300)], ids=str)
def test_iterative_orthogonal_gradient_is_across_every_row_and_column(shape):
    """And keeps their lengths, both but for a few percent; `flattened` is across the whole only."""
    p = normal(2, *shape)
    g = normal(2, *shape, seed=1) + p
    found = projected(g, p, "iterative")

    def cosines(x: Tensor) -> Tensor:
        return torch.cat([torch.cosine_similarity(x, p, dim).flatten() for dim in (1, 2)]).abs()

    assert cosines(found).max() <= 0.03 < 0.3 < cosines(g).median()
    assert cosines(projected(g, p, "flattened")).max() > 0.1
    for dim in (1, 2):
        torch.testing.assert_close(found.norm(dim=dim), g.norm(dim=dim), rtol=0.03, atol=0)
