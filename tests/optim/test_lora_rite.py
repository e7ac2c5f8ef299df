"""LoRA-RITE against its equations, its invariance, and what LoRAs bring with them: zeros, lost ranks, kernels."""

import math
from types import SimpleNamespace

from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.features.unmagnified import _spectral_basis, eigen, inverse_roots, unit_basis
from scaled_optim.roles import matrix_shape
from scaled_optim.scaling import COHERENT, LAWS

import torch
from torch import Tensor, nn

import pytest

FLOAT32, BFLOAT16, FLOAT64 = torch.float32, torch.bfloat16, torch.float64
OUT, IN, RANK = 20, 30, 4


def described(down: Tensor, up: Tensor, name: str = "layer") -> list[nn.Parameter]:
    parameters = [nn.Parameter(down), nn.Parameter(up)]
    for parameter, own, other in zip(parameters, ("down", "up"), ("up", "down"), strict=True):
        parameter.parameter_info = SimpleNamespace(
            role=f"LORA_{own.upper()}", name=f"{name}.{own}", pair=f"{name}.{other}"
        )
    return parameters


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64)


class Task:
    """Least squares: up·down should be a given matrix, seen through inputs and noise that change from step to step."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.target = dtype, drawn(OUT, IN, seed=7)

    def gradients(self, down: nn.Parameter, up: nn.Parameter, step: int) -> None:
        x = drawn(48, IN, seed=100 + step).to(self.dtype)
        down.grad = up.grad = None
        wanted = self.target.to(self.dtype) + 0.3 * drawn(OUT, IN, seed=900 + step).to(self.dtype)
        (x @ (up @ down - wanted).T).square().mean().backward()


def products(down: Tensor, up: Tensor, dtype: torch.dtype, steps: int = 50, rate: float = 0.03, **options) -> Tensor:
    """up·down after every step, `[steps, OUT, IN]` in float64."""
    down, up = described(down.to(dtype, copy=True), up.to(dtype, copy=True))
    optimizer, task, found = BatchedOptimizer([down, up], "LORA_RITE", rate, **options), Task(dtype), []
    for step in range(steps):
        task.gradients(down, up, step)
        optimizer.step()
        found.append(up.detach().double() @ down.detach().double())
    return torch.stack(found)


START = drawn(RANK, IN, seed=1), drawn(OUT, RANK, seed=2)


def difference(first: Tensor, second: Tensor) -> float:
    """Largest distance at any step, relative to how far the run has come from its start."""
    moved = (second - (START[1] @ START[0])).norm(dim=(1, 2))
    return float(((first - second).norm(dim=(1, 2)) / moved).max())


# -- the equations ----------------------------------------------------------------------------------------------------


class Written:
    """One factor's side of the algorithm, as the paper writes it, with running means; H = own·otherᵀ."""

    def __init__(self, beta1: float, beta2: float, eps: float) -> None:
        self.betas, self.eps, self.t = (beta1, beta2), eps, 0
        self.mass = 0.0

    def step(self, gradient: Tensor, other: Tensor) -> Tensor:
        self.t += 1
        u, r = torch.linalg.qr(other)
        g = torch.linalg.solve(r.T, gradient.T).T
        beta1, beta2 = (b * (1 - b ** (self.t - 1)) / (1 - b**self.t) for b in self.betas)
        if self.t == 1:
            carried_v, carried_m = torch.zeros(RANK, RANK, dtype=FLOAT64), torch.zeros_like(g)
        else:
            p = u.T @ self.u
            carried_v, carried_m = p @ self.v @ p.T, self.m @ p.T
            before, after = (torch.linalg.svdvals(v).sort().values for v in (self.v, carried_v))
            self.mass = beta2 * (self.mass + float((before - after).abs().max()))
        self.u, self.v = u, beta2 * carried_v + (1 - beta2) * g.T @ g
        values, vectors = torch.linalg.eigh(self.v + self.mass * torch.eye(RANK, dtype=FLOAT64))
        step = g @ vectors @ torch.diag(1 / (values.sqrt() + self.eps)) @ vectors.T
        self.m = beta1 * carried_m + (1 - beta1) * step
        return torch.linalg.solve(r, self.m.T).T


@pytest.mark.parametrize("eps", [1e-8, 0.3])
def test_the_equations(eps):
    """Momentum, escaped mass and all, over 60 steps; both are shown to matter."""
    down, up = described(*(x.clone() for x in START))
    optimizer = BatchedOptimizer([down, up], "LORA_RITE", 0.1, beta2=0.98, eps=eps, weight_decay=0.1)
    a, b = START[1].clone(), START[0].T.clone()
    sides, task = [Written(0.9, 0.98, eps) for _ in "ab"], Task(FLOAT64)
    for step in range(60):
        task.gradients(down, up, step)
        optimizer.step()
        # beside, the paper's own
        ours = nn.Parameter(b.T.contiguous()), nn.Parameter(a.clone())
        task.gradients(*ours, step)
        steps = sides[0].step(ours[1].grad, b), sides[1].step(ours[0].grad.T, a)
        a, b = ((1 - 0.1 * 0.1) * x - 0.1 * u for x, u in zip((a, b), steps, strict=True))
    # of V's eigenvalues of 0.3 to 5: without it steps would differ by a part in ten thousand, far more than is allowed
    assert min(side.mass for side in sides) > 1e-4
    # both in float64, with condition numbers of a hundred
    torch.testing.assert_close(up.detach(), a, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(down.detach(), b.T, rtol=1e-9, atol=1e-9)


def test_bases_and_roots():
    x = drawn(3, 12, 4)
    w, r = unit_basis(x.mT @ x)
    identity = torch.eye(4, dtype=FLOAT64).expand(3, 4, 4)
    # float64 rounding times the squared condition number, which is below 100
    torch.testing.assert_close((x @ w).mT @ (x @ w), identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(w @ r, identity, rtol=0, atol=1e-12)
    v = x.mT @ x
    values, vectors = eigen(v)
    roots = inverse_roots(values, torch.full((3, 1), 0.5, dtype=FLOAT64), 0.0)
    root = vectors * roots.unsqueeze(1) @ vectors.mT
    torch.testing.assert_close(root @ (v + 0.5 * identity) @ root, identity, rtol=0, atol=1e-12)
    # lost ranks: a projection to those that are left
    x[:, :, 3] = x[:, :, 0] - x[:, :, 1]
    w, r = unit_basis(x.mT @ x)
    assert (torch.linalg.matrix_rank(w @ r) == 3).all()
    torch.testing.assert_close(x @ w @ r, x, rtol=0, atol=1e-7)  # √ε, below which directions count as none
    assert not unit_basis(torch.zeros(1, 3, 3))[0].any()


# -- invariance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"scaled_optm": True, "weight_decay": 0.01}, {"clip_unmagnified_grad": 0.05}, {"use_bias_correction": False}],
    ids=str,
)
@pytest.mark.parametrize(("dtype", "bound"), [(FLOAT64, 1e-8), (FLOAT32, 1e-3)])
def test_the_change_of_the_product_is_the_same_for_every_split(dtype, bound, options):
    reference = products(*START, dtype, **options)
    for seed in (14, 15, 18):
        r = drawn(RANK, RANK, seed=seed)
        # Gram matrices cost rounding times the squared condition number, so float32 serves up to 50
        assert 5 < torch.linalg.cond(r) < 30
        other = products(torch.linalg.inv(r) @ START[0], START[1] @ r, dtype, **options)
        assert difference(other, reference) < bound, seed


@pytest.mark.parametrize("scale", [1e-3, 0.1, 50.0])
def test_the_change_of_the_product_is_the_same_for_every_scale(scale):
    reference = products(*START, FLOAT32)
    assert difference(products(START[0] / scale, START[1] * scale, FLOAT32), reference) < 1e-3


def test_adam_is_not_invariant():
    """So that the tests above can tell."""
    found = []
    for scale in (1.0, 0.1):
        down, up = described(START[0] / scale, START[1] * scale)
        optimizer, task = BatchedOptimizer([down, up], "ADAMW_ADV", 0.03), Task(FLOAT64)
        for step in range(5):
            task.gradients(down, up, step)
            optimizer.step()
        found.append(up.detach() @ down.detach())
    assert difference(found[1][None], found[0][None]) > 0.1


@pytest.mark.parametrize("fused", [False, True])
def test_the_order_of_parameters_does_not_matter(fused):
    results = []
    for order in ((0, 1, 2, 3), (3, 0, 2, 1)):
        pairs = described(*(x.clone() for x in START), "first") + described(*(2 * x for x in START), "second")
        optimizer, task = BatchedOptimizer([pairs[k] for k in order], "LORA_RITE", 0.03), Task(FLOAT64)
        for step in range(5):
            for k in (0, 2):
                task.gradients(pairs[k], pairs[k + 1], step)
            if fused:
                for k in order:
                    optimizer.step_parameter(pairs[k])
                    pairs[k].grad = None
            optimizer.step()
        results.append([p.detach().clone() for p in pairs])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_one_factor_may_be_stepped_alone():
    """The other one and its state stay; the next step of both goes on from there."""
    down, up = described(*(x.clone() for x in START))
    optimizer, task = BatchedOptimizer([down, up], "LORA_RITE", 0.03), Task(FLOAT64)
    task.gradients(down, up, 0)
    optimizer.step()
    before = up.detach().clone(), down.detach().clone()
    task.gradients(down, up, 1)
    up.grad = None
    optimizer.step()
    assert torch.equal(before[0], up) and not torch.equal(before[1], down)
    assert [entry["step"] for entry in optimizer.state_dict()["state"].values()] == [2, 1]
    # twice within one fused pass: the first is stepped alone, not lost
    task.gradients(down, up, 2)
    before = down.detach().clone()
    optimizer.step_parameter(down)
    assert torch.equal(before, down)
    optimizer.step_parameter(down)
    assert not torch.equal(before, down)
    optimizer.step_parameter(up)
    assert [entry["step"] for entry in optimizer.state_dict()["state"].values()] == [4, 2]


# -- what LoRAs bring -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_start_from_zero_learns(dtype, kernel, scaled):
    """up = 0 moves first; then both, and the loss falls. Convolutions as their matrices."""
    g = torch.Generator().manual_seed(3)
    shape = (RANK, 5, kernel, kernel) if kernel > 1 else (RANK, IN)
    kind = (OUT, RANK, 1, 1) if kernel > 1 else (OUT, RANK)
    down, up = described((torch.randn(shape, generator=g) / 5).to(dtype), torch.zeros(kind, dtype=dtype))
    inner = down[0].numel()
    target = torch.randn(OUT, RANK, generator=g) @ torch.randn(RANK, inner, generator=g) / math.sqrt(inner)
    optimizer = BatchedOptimizer([down, up], "LORA_RITE", 0.3, scaled_optm=scaled)

    def loss() -> Tensor:
        flat = (p.float().view(matrix_shape(tuple(p.shape))) for p in (up, down))
        return (next(flat) @ next(flat) - target).square().sum() / target.square().sum()

    first, start = loss().item(), down.detach().clone()
    steps = 150
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / steps)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if step == 0:
            assert torch.equal(down, start) and up.abs().min() > 0
    assert first == 1 and loss().item() < (0.02 if dtype == FLOAT32 else 0.05)  # bfloat16: steps of 2⁻⁸ of a number


def test_lost_ranks_of_either_factor():
    """Rank 2 of 4: what B has not is left alone in A, nothing blows up, and what is there learns."""
    down, up = (x.clone().float() for x in START)
    up[:, 2:] = up[:, :2] @ drawn(2, 2, seed=5).float()
    found = products(down, up, FLOAT32, steps=40, rate=0.02)
    assert found.isfinite().all()
    change = (found[-1] - found[0]).norm() / math.sqrt(RANK)
    # 40 steps of σ₁ at most about 0.02 on each side
    assert 0.1 < change < 40 * 0.02 * 2
    few = products(drawn(6, IN, seed=1), drawn(OUT, 6, seed=2)[:, :6] * 0, FLOAT32, steps=5)
    assert few.isfinite().all()


def test_more_ranks_than_a_side_has():
    down, up = described(torch.randn(9, 5), torch.randn(4, 9))
    optimizer = BatchedOptimizer([down, up], "LORA_RITE", 0.01)
    for _ in range(5):
        for p in (down, up):
            p.grad = torch.randn_like(p)
        optimizer.step()
    assert down.isfinite().all() and up.isfinite().all() and down.abs().max() < 10


def test_what_is_not_finite_spreads_over_its_pair_alone():
    pairs = described(*(x.clone() for x in START), "first") + described(*(x.clone() for x in START), "second")
    optimizer = BatchedOptimizer(pairs, "LORA_RITE", 0.01)
    for p in pairs:
        p.grad = torch.ones_like(p)
    pairs[0].grad[0, 0] = torch.nan
    optimizer.step()
    assert pairs[0].isnan().any() and all(p.isfinite().all() for p in pairs[2:])


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_scaled_steps_move_the_product_by_the_learning_rate(rank, law):
    """σ₁ of each factor's part of the product's change is √(out/in)·η, whatever the split; by the law "coherent" times
    (in/rank)^(1/4) for up, whose step stays in the rows of A, and (out/rank)^(1/4) for down, √(1 + 1/rank), and the
    gain of the rank."""
    for size in (1.0, 20.0):
        down, up = described(drawn(rank, IN, seed=1) * size, drawn(OUT, rank, seed=2) / size)
        optimizer = BatchedOptimizer([down, up], "LORA_RITE", 0.01, scaled_optm=True, scale_law=law)
        task = Task(FLOAT64)
        for step in range(3):
            before = down.detach().clone(), up.detach().clone()
            task.gradients(down, up, step)
            optimizer.step()
            changes = ((up - before[1]) @ before[0], IN), (before[1] @ (down - before[0]), OUT)
            for change, side in changes:
                found = torch.linalg.matrix_norm(change.detach(), 2).item()
                own = (rank / 16) ** (1 / 12)
                gain = max(1, side / rank) ** 0.25 * math.sqrt(1 + 1 / rank) * own if law == COHERENT else 1
                # exact but for rounding
                assert found == pytest.approx(0.01 * math.sqrt(OUT / IN) * gain, rel=1e-6)


def test_clipping_bounds_the_unmagnified_gradient():
    """One gradient that is a thousand times larger counts no more than the bound, so it leaves less behind."""
    finals = []
    for limit in (0.0, 0.05):
        down, up = described(*(x.clone() for x in START))
        optimizer, task = BatchedOptimizer([down, up], "LORA_RITE", 0.02, clip_unmagnified_grad=limit), Task(FLOAT64)
        for step in range(10):
            task.gradients(down, up, step)
            if step == 3:
                for p in (down, up):
                    p.grad.mul_(1000)
            optimizer.step()
        v = [entry["slots"]["partner_space"]["values"] for entry in optimizer.state_dict()["state"].values()]
        finals.append([float(x.sum()) for x in v])
    assert min(finals[0]) > 1000 * max(finals[1]) and max(finals[1]) <= 0.05**2


@pytest.mark.parametrize("rank", [4, 16])
@pytest.mark.parametrize(("outputs", "inputs"), [(1280, 640), (320, 2816)])
def test_state_is_linear_in_the_sides(rank, outputs, inputs):
    """O(nr + r²) bytes: the last step, the partner's factor, and of each factor one r × r matrix, V's values and ρ."""
    down, up = described(torch.randn(rank, inputs), torch.randn(outputs, rank))
    optimizer = BatchedOptimizer([down, up], "LORA_RITE", 0.01)
    entries = optimizer.state_dict()["state"].values()
    stores = [x for entry in entries for store in entry["slots"].values() for x in store.values()]
    expected = 4 * (2 * rank * (inputs + outputs) + 2 * (rank**2 + rank + 1))
    assert sum(x.numel() * x.element_size() for x in stores) == expected


def test_bases_by_cholesky_are_those_by_eigenvectors():
    """Of a stack in which some have lost ranks: each the same alone, and U·R is X both ways."""
    x = drawn(5, 40, 16).float()
    x[1, :, 3] = x[1, :, 0]
    x[2] = 0
    x[4] *= 1e-15
    gram = x.mT @ x
    w, r = unit_basis(gram)
    for k in range(5):
        alone = unit_basis(gram[k : k + 1])
        assert torch.equal(alone[0][0], w[k]) and torch.equal(alone[1][0], r[k])
    sure = [0, 3, 4]
    assert not r[sure].tril(-1).any() and r[1].tril(-1).any() and not r[2].any()
    spectral = _spectral_basis(gram)
    for k in (0, 1, 3, 4):
        unit, other = x[k] @ w[k], x[k] @ spectral[0][k]
        # the same space: rounding times the squared condition number, below 100
        torch.testing.assert_close(unit @ unit.T, other @ other.T, rtol=0, atol=1e-4)
        torch.testing.assert_close(unit @ r[k], x[k], rtol=1e-3, atol=1e-3 * float(x[k].abs().max()))


# -- the authors' scale --------------------------------------------------------------------------------------------


def test_mean_scale_makes_steps_larger_by_the_root_of_the_long_side():
    """As in the authors' code, whose second moment is a mean over the factor's long side; ε is 0 here."""
    moved = {}
    for scale in ("sum", "mean"):
        down, up = described(*(x.clone() for x in START))
        before = [down.detach().clone(), up.detach().clone()]
        optimizer = BatchedOptimizer([down, up], "LORA_RITE", 1e-3, rite_scale=scale, eps=0.0)
        Task(FLOAT64).gradients(down, up, 0)
        optimizer.step()
        moved[scale] = [p.detach() - start for p, start in zip((down, up), before, strict=True)]
    for one, other, side in zip(moved["sum"], moved["mean"], (IN, OUT), strict=True):
        torch.testing.assert_close(other, one * math.sqrt(side), rtol=1e-9, atol=0)


def test_mean_scale_is_a_learning_rate():
    """Where both factors are as long, the whole run is that of the other scale at √side of its rate."""
    side = 24
    runs = []
    for scale, rate in (("sum", 0.03), ("mean", 0.03 / math.sqrt(side))):
        down, up = described(drawn(RANK, side, seed=1), drawn(side, RANK, seed=2))
        optimizer = BatchedOptimizer([down, up], "LORA_RITE", rate, rite_scale=scale, eps=0.0)
        for step in range(30):
            target, noise = drawn(side, side, seed=7), drawn(side, side, seed=900 + step)
            down.grad = up.grad = None
            (up @ down - target - 0.3 * noise).square().mean().backward()
            optimizer.step()
        runs.append(up.detach() @ down.detach())
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-7, atol=1e-9)


def test_mean_scale_leaves_scaled_steps_alone():
    runs = [products(*START, FLOAT64, 20, rite_scale=scale, scaled_optm=True, eps=0.0) for scale in ("sum", "mean")]
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-7, atol=1e-9)
