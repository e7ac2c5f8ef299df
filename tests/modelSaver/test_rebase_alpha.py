"""Rebasing and resizing single layers, where ΔW is multiplied out by hand in float64."""

import math

from modules.modelSaver.rebase_alpha import rebase_alpha, resize_lora

import torch
from torch import Tensor

import pytest

RANK = 3


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(a: Tensor, b: Tensor) -> Tensor:
    return a.double().flatten(1) @ b.double().flatten(1)


def tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("pqhw,po,qi->oihw", core.double(), a.double(), b.double())


LAYERS: dict[str, tuple[dict[str, Tensor], object, int]] = {
    # name -> parts without alpha, their product, number of factors
    "lora": (
        {"lora_down.weight": draw(RANK, 8, seed=0), "lora_up.weight": draw(6, RANK, seed=1)},
        lambda p: low_rank(p["lora_up.weight"], p["lora_down.weight"]), 2,
    ),
    "convolution": (
        {"lora_down.weight": draw(RANK, 4, 3, 3, seed=0), "lora_up.weight": draw(6, RANK, 1, 1, seed=1)},
        lambda p: low_rank(p["lora_up.weight"], p["lora_down.weight"]), 2,
    ),
    "dora": (
        {"lora_down.weight": draw(RANK, 8, seed=0), "lora_up.weight": draw(6, RANK, seed=1),
         "dora_scale": torch.ones(1, 8)},
        lambda p: low_rank(p["lora_up.weight"], p["lora_down.weight"]), 2,
    ),
    "loha": (
        {f"hada_w{n}_a": draw(6, RANK, seed=n) for n in (1, 2)}
        | {f"hada_w{n}_b": draw(RANK, 8, seed=n + 2) for n in (1, 2)},
        lambda p: low_rank(p["hada_w1_a"], p["hada_w1_b"]) * low_rank(p["hada_w2_a"], p["hada_w2_b"]), 4,
    ),
    "loha in tucker form": (
        {f"hada_w{n}_{side}": draw(RANK, 6 if side == "a" else 4, seed=n) for n in (1, 2) for side in "ab"}
        | {f"hada_t{n}": draw(RANK, RANK, 3, 3, seed=n + 2) for n in (1, 2)},
        lambda p: math.prod(tucker(p[f"hada_t{n}"], p[f"hada_w{n}_a"], p[f"hada_w{n}_b"]) for n in (1, 2)), 4,
    ),
    "lokr": (
        {"lokr_w1": draw(2, 2, seed=0), "lokr_w2_a": draw(3, RANK, seed=1), "lokr_w2_b": draw(RANK, 4, seed=2)},
        lambda p: torch.kron(p["lokr_w1"].double(), low_rank(p["lokr_w2_a"], p["lokr_w2_b"])), 3,
    ),
    "lokr, both decomposed": (
        {"lokr_w1_a": draw(2, RANK, seed=0), "lokr_w1_b": draw(RANK, 2, seed=1),
         "lokr_w2_a": draw(3, RANK, seed=2), "lokr_w2_b": draw(RANK, 4, seed=3)},
        lambda p: torch.kron(low_rank(p["lokr_w1_a"], p["lokr_w1_b"]), low_rank(p["lokr_w2_a"], p["lokr_w2_b"])), 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("old", [1.0, 5.0, None])
@pytest.mark.parametrize("name", LAYERS)
def test_the_change_stays(name, old):
    parts, product, factors = LAYERS[name]
    given = parts if old is None else parts | {"alpha": torch.tensor(old)}
    before = (RANK if old is None else old) / RANK * product(parts)
    rebased = rebase_alpha(given, 7.0)
    assert rebased["alpha"].item() == 7.0 and rebased.keys() == parts.keys() | {"alpha"}
    after = 7.0 / RANK * product(rebased)
    assert (after - before).norm() < 1e-6 * before.norm()  # float32, one rounding a factor
    each = ((RANK if old is None else old) / 7.0) ** (1 / factors)
    changed = [part for part in parts if not torch.equal(rebased[part], parts[part])]
    # all factors alike; cores and magnitude stay
    assert len(changed) == factors
    for part in changed:
        assert torch.allclose(rebased[part], parts[part] * each, rtol=1e-6)


def test_two_full_factors_ignore_alpha():
    parts = {"lokr_w1": draw(2, 2, seed=0), "lokr_w2": draw(3, 4, seed=1)}
    for given in (parts, parts | {"alpha": torch.tensor(2.0)}):
        assert rebase_alpha(given, 8.0) == given


@pytest.mark.parametrize("parts", [{"oft_R.weight": draw(2, 6, seed=0)}, {"diff": draw(2, 6, seed=0)}])
def test_kinds_without_alpha(parts):
    with pytest.raises(ValueError, match="has no alpha"):
        rebase_alpha(parts, 2.0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_alphas_that_make_no_sense(alpha):
    with pytest.raises(ValueError, match="above 0"):
        rebase_alpha(LAYERS["lora"][0], alpha)


@pytest.mark.parametrize("old", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["lora", "loha", "lokr"])
def test_alphas_of_files_that_no_factor_can_take_over(name, old):
    with pytest.raises(ValueError, match=f"alpha: found {old:g} in the adapter, expected a number above 0"):
        rebase_alpha(LAYERS[name][0] | {"alpha": torch.tensor(old)}, 4.0)


def test_half_precision_is_computed_in_float32():
    parts = {part: tensor.half() for part, tensor in LAYERS["lora"][0].items()}
    assert all(tensor.dtype == torch.float32 for tensor in rebase_alpha(parts, 2.0).values())


@pytest.mark.parametrize("name", ["lora", "convolution", "dora"])
def test_resizing(name):
    parts, product, _ = LAYERS[name]
    given = parts | {"alpha": torch.tensor(6.0)}
    whole = 6 / RANK * product(parts)
    left, sigma, right = torch.linalg.svd(whole, full_matrices=False)
    resized, error = resize_lora(given, 2)
    assert resized["alpha"].item() == 4.0, "the scale stays, so alpha shrinks with the rank"
    found = 2.0 * product(resized)
    assert (found - (left[:, :2] * sigma[:2]) @ right[:2]).norm() < 1e-6 * whole.norm()  # float32
    assert error == pytest.approx((sigma[2:].norm() / sigma.norm()).item(), abs=1e-7)
    assert resized.keys() == given.keys()
    for part in parts:
        assert resized[part].dim() == parts[part].dim()
    same, nothing = resize_lora(given, RANK)
    assert nothing == 0 and all(torch.equal(same[part], given[part]) for part in given)
