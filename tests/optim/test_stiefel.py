"""Stiefel-LoRA: the geometry of B, the size of both factors' steps, and what it asks of its parameters."""

import math
from types import SimpleNamespace

from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.features.stiefel import make_orthonormal_, orthonormality_error, retracted, tangent_
from scaled_optim.scaling import COHERENT, LAWS

import torch
from torch import Tensor, nn

import pytest

FLOAT32, BFLOAT16, FLOAT64 = torch.float32, torch.bfloat16, torch.float64
# (outputs, inputs, rank, kernel); one rank fills no vector register, one is the number of outputs
LAYERS = [(24, 40, 4, 1), (24, 40, 4, 1), (17, 9, 3, 3), (8, 30, 8, 1), (80, 100, 70, 1)]


def pair(out: int, inner: int, rank: int, kernel: int, name: str, dtype=FLOAT32, seed: int = 0) -> list[nn.Parameter]:
    """Down and up factor as `lora_init` ORTHONORMAL draws them; of a convolution if the kernel is larger than 1."""
    g = torch.Generator().manual_seed(seed)
    up = torch.linalg.qr(torch.randn(out, rank, generator=g, dtype=FLOAT64)).Q
    sides = (kernel, kernel) if kernel > 1 else ()
    factors = [torch.zeros(rank, inner, *sides), up.reshape(out, rank, *(1 for _ in sides))]
    parameters = [nn.Parameter(factor.to(dtype)) for factor in factors]
    for parameter, own, other in zip(parameters, ("down", "up"), ("up", "down"), strict=True):
        parameter.parameter_info = SimpleNamespace(
            role=f"LORA_{own.upper()}", name=f"{name}.{own}", pair=f"{name}.{other}"
        )
    return parameters


def model(dtype=FLOAT32) -> list[nn.Parameter]:
    return [p for k, layer in enumerate(LAYERS) for p in pair(*layer, f"layer{k}", dtype, k)]


def errors(parameters: list[nn.Parameter]) -> list[float]:
    return [float(orthonormality_error(p)) for p in parameters if p.parameter_info.role == "LORA_UP"]


def walk(parameters: list[nn.Parameter], optimizer: BatchedOptimizer, steps: int, seed: int = 9) -> None:
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=g).to(p.dtype)
        optimizer.step()


def gaussian(*shape: int, dtype=FLOAT64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


# -- geometry ---------------------------------------------------------------------------------------------------------


def test_the_tangent_projection_is_the_orthogonal_one():
    b = torch.linalg.qr(gaussian(3, 12, 4)).Q
    u = gaussian(3, 12, 4)
    t = tangent_(b, u.clone())
    # float64 rounding of sums of a dozen numbers of size 1
    torch.testing.assert_close(b.mT @ t, -(t.mT @ b), rtol=0, atol=1e-14)
    torch.testing.assert_close(tangent_(b, t.clone()), t, rtol=0, atol=1e-14)
    # what was taken away is orthogonal to every tangent
    other = tangent_(b, gaussian(3, 12, 4).flip(0))
    torch.testing.assert_close(((u - t) * other).sum((1, 2)), torch.zeros(3, dtype=FLOAT64), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("rows", "rank"), [(9, 3), (64, 16), (70, 66), (5, 5), (7, 1)])
def test_the_retraction_is_qr_with_positive_diagonal(rows, rank):
    x = gaussian(4, rows, rank)
    q, r = torch.linalg.qr(x)
    # Cholesky-QR twice: ε for κ(x) below 1/√ε, and Q follows x with κ(x)
    expected = q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)
    torch.testing.assert_close(retracted(x), expected, rtol=0, atol=1e-10 * float(torch.linalg.cond(x).max()))


def test_the_retraction_agrees_with_the_tangent_to_second_order():
    b = torch.linalg.qr(gaussian(2, 20, 5)).Q
    t = tangent_(b, gaussian(2, 20, 5).flip(0))
    differences = [(retracted(b + h * t) - b - h * t).norm().item() for h in (1e-2, 1e-3)]
    # h² each time; the third order is a part in a hundred
    assert differences[0] / differences[1] == pytest.approx(100, rel=0.05)
    torch.testing.assert_close(retracted(b), b, rtol=0, atol=1e-14)


def test_the_retraction_of_what_has_no_rank_stays_finite():
    x = gaussian(2, 9, 3).float()
    x[0, :, 2] = x[0, :, 1]
    found = retracted(x)
    assert found.isfinite().all() and orthonormality_error(found[1]) < 1e-6
    assert torch.equal(retracted(x[1:])[0], found[1]), "a neighbour that fails changes nothing"
    x[0, 0, 0] = torch.nan
    assert retracted(x)[0].isnan().any() and retracted(x)[1].isfinite().all()


@pytest.mark.parametrize(("dtype", "bound"), [(FLOAT32, 1e-5), (BFLOAT16, 1e-2)])
@pytest.mark.parametrize("base", ["ADAMW", "SIGN"])
def test_b_stays_orthonormal(dtype, bound, base, long):
    """Over 2,000 steps with `--long`, else over 400."""
    parameters = [p for k, layer in enumerate(LAYERS[1:4]) for p in pair(*layer, f"layer{k}", dtype, k)]
    optimizer = BatchedOptimizer(parameters, "STIEFEL_LORA", 0.05, stiefel_base=base, weight_decay=0.1)
    start = [p.detach().clone() for p in parameters]
    worst = 0.0
    for chunk in range(10 if long else 2):
        walk(parameters, optimizer, 200, chunk)
        worst = max(worst, *errors(parameters))
    assert worst <= bound
    assert all((p - q).abs().max() > 0.01 for p, q in zip(parameters, start, strict=True)), "they must have moved"


# -- size of steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("base", ["ADAMW", "SIGN"])
def test_both_factors_step_by_the_learning_rate(base, law):
    """By the law "variance" whatever the rank, by "coherent" times the gains of the rank and of B's columns' space."""
    parameters, rate = model(FLOAT64), 1e-3
    optimizer = BatchedOptimizer(parameters, "STIEFEL_LORA", rate, stiefel_base=base, scale_law=law)
    for step in range(3):
        before = [p.detach().clone() for p in parameters]
        walk(parameters, optimizer, 1, step)
        for p, q, (out, inner, rank, kernel) in zip(parameters, before, [x for x in LAYERS for _ in "ab"], strict=True):
            size = torch.linalg.matrix_norm((p - q).detach().flatten(1), 2).item()
            wide = p.parameter_info.role == "LORA_DOWN"
            expected = rate * math.sqrt(out / (inner * kernel**2)) if wide else rate
            expected *= (out / rank) ** 0.25 * (rank / 16) ** (1 / 12) if law == COHERENT else 1
            # σ₁ is estimated within 3.5 %, for 70 ranks within 5 %, and what brings B back adds a part of 1e-3
            assert size == pytest.approx(expected, rel=0.055), (p.parameter_info.name, rank)


def test_decay_is_that_of_the_schedule_and_of_a_alone():
    """Without gradient: A decays by wd·η/η₀ whatever the rank and the rate, B stays."""
    for rate in (0.01, 0.1):
        parameters = pair(24, 40, 4, 1, "first") + pair(24, 40, 8, 1, "second")
        for p in parameters[::2]:
            p.data.normal_(generator=torch.Generator().manual_seed(0))
        before = [p.detach().clone() for p in parameters]
        optimizer = BatchedOptimizer(parameters, "STIEFEL_LORA", rate, weight_decay=0.1)
        for factor in (1, 0.5):
            optimizer.param_groups[0]["lr"] = rate * factor
            for p in parameters:
                p.grad = torch.zeros_like(p)
            optimizer.step()
        for k, (p, q) in enumerate(zip(parameters, before, strict=True)):
            # rounding of float32
            expected = q * (0.9 * 0.95 if k % 2 == 0 else 1)
            torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)


def test_it_finds_a_matrix_of_its_rank():
    g = torch.Generator().manual_seed(4)
    target = torch.randn(24, 4, generator=g) @ torch.randn(4, 40, generator=g)
    target /= torch.linalg.matrix_norm(target, 2)
    down, up = pair(24, 40, 4, 1, "layer")
    optimizer = BatchedOptimizer([down, up], "STIEFEL_LORA", 0.1)
    optimizer.watch = True
    steps = 300
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        optimizer.zero_grad()
        loss = (up @ down - target).square().sum()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3 * target.square().sum()
    found = optimizer.read_statistics()
    # orthonormal columns have equal singular values; sums of float32
    assert found["effective_rank/LORA_UP"] == pytest.approx(4, rel=1e-6)
    assert found["orthogonality_error/LORA_UP"] <= 1e-5 and found["update_rms/LORA_DOWN"] > 0


def test_state_is_two_moments():
    """O(nr) bytes: AdamW's, and nothing of the geometry."""
    parameters = pair(320, 640, 16, 1, "layer")
    optimizer = BatchedOptimizer(parameters, "STIEFEL_LORA", 0.01)
    entries = optimizer.state_dict()["state"].values()
    stores = [x for entry in entries for store in entry["slots"].values() for x in store.values()]
    assert sum(x.numel() * x.element_size() for x in stores) == 4 * 2 * 16 * (320 + 640)


@pytest.mark.parametrize("rate", [0.5, 3.0])
def test_b_stays_orthonormal_at_large_rates(rate):
    """One pass of Cholesky-QR serves rates up to 1, two serve the others."""
    parameters = [p for k, layer in enumerate(LAYERS[1:4]) for p in pair(*layer, f"layer{k}", FLOAT32, k)]
    optimizer = BatchedOptimizer(parameters, "STIEFEL_LORA", rate)
    for step in range(100):
        walk(parameters, optimizer, 1, step)
        assert max(errors(parameters)) <= 1e-5


# -- what it is given -------------------------------------------------------------------------------------------------


def test_what_is_no_pair_goes_to_adamw_and_is_told():
    others = [nn.Parameter(gaussian(*shape, dtype=FLOAT32)) for shape in ((7,), (5, 6), (5, 4))]
    for p, role in zip(others, ("DORA_SCALE", "HIDDEN", "LORA_UP"), strict=True):
        p.parameter_info = SimpleNamespace(role=role, name=f"alone.{role}", pair="nobody")
    twins = [nn.Parameter(p.detach().clone()) for p in others]
    for p, twin in zip(others, twins, strict=True):
        twin.parameter_info = p.parameter_info
    options = {"weight_decay": 0.1, "beta1": 0.8}
    mixed = BatchedOptimizer([*others, *pair(24, 40, 4, 1, "layer")], "STIEFEL_LORA", 0.01, **options)
    adam = BatchedOptimizer(twins, "ADAMW_ADV", 0.01, **options)
    (note,) = mixed.notes
    assert "ADAMW_ADV" in note and all(p.parameter_info.name in note for p in others) and "layer" not in note
    assert not adam.notes
    # without the pair's gradients the pair is not stepped
    walk(others, mixed, 3)
    walk(twins, adam, 3)
    assert all(torch.equal(p, twin) for p, twin in zip(others, twins, strict=True))


def test_wrong_starts_are_refused_by_name():
    down, up = pair(24, 40, 4, 1, "some.layer")
    up.data.zero_()
    up.grad = torch.ones_like(up)
    with pytest.raises(ValueError, match=r"^lora_init: the columns of some\.layer\.up.*ORTHONORMAL"):
        BatchedOptimizer([down, up], "STIEFEL_LORA", 0.01).step()
    down, up = pair(24, 40, 4, 1, "some.layer")
    up.data = torch.ones(3, 4)
    with pytest.raises(ValueError, match=r"^lora_rank: some\.layer\.up has 4 ranks and 3 outputs"):
        BatchedOptimizer([down, up], "STIEFEL_LORA", 0.01).notes  # noqa: B018
    for option in ("fisher_wd", "kourkoutas_beta", "use_atan2"):
        with pytest.raises(ValueError, match=f"^{option}: with stiefel_base SIGN"):
            BatchedOptimizer([down], "STIEFEL_LORA", 0.01, stiefel_base="SIGN", **{option: True})


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(FLOAT64, 1e-13), (FLOAT32, 1e-6), (BFLOAT16, 0.02)])
def test_any_adapter_can_be_made_orthonormal(kernel, dtype, tolerance):
    down, up = pair(24, 10, 4, kernel, "layer", dtype)
    down.data, up.data = gaussian(*down.shape, dtype=dtype), gaussian(*up.shape, dtype=dtype)
    before = up.detach().double().flatten(1) @ down.detach().double().flatten(1)
    assert make_orthonormal_(down, up)
    after = up.detach().double().flatten(1) @ down.detach().double().flatten(1)
    # rounding of both factors
    assert (after - before).norm() <= tolerance * before.norm() and orthonormality_error(up) <= tolerance
    with torch.no_grad():
        up[:, 1] = up[:, 0]
        kept = up.clone(), down.clone()
    assert not make_orthonormal_(down, up)
    assert torch.equal(kept[0], up) and torch.equal(kept[1], down)
