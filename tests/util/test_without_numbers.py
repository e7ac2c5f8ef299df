"""Tensors without numbers against the same computation with numbers: shapes, formats and memory must be the same."""

from modules.util.MemoryProbe import MemoryProbe
from modules.util.WithoutNumbers import HeldMemory, WithoutNumbers

import torch
import torch.nn.functional as F
from torch import nn

import pytest


class Net(nn.Module):
    """Some of everything: convolution, norms, attention, views, changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        h = F.silu(self.norm(self.conv(x)))
        q, k, v = self.qkv(h.flatten(2).transpose(1, 2)).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return self.out(h + 1).mul_(2)


def step(net: nn.Module, dtype: torch.dtype | None):
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        result = net(torch.randn(2, 3, 8, 8))
    result.float().square().mean().backward()
    return result


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_memory_and_shapes_are_those_of_a_real_computation(dtype):
    real = Net()
    with MemoryProbe() as probe:
        expected = step(real, dtype)
    empty, space = Net(), WithoutNumbers()
    for module in empty.modules():
        for name, parameter in list(module._parameters.items()):
            module._parameters[name] = nn.Parameter(space.like(parameter))
    with space, space.counting() as memory:
        result = step(empty, dtype)
    assert (result.shape, result.stride(), result.dtype) == (expected.shape, expected.stride(), expected.dtype)
    assert memory.peak == pytest.approx(probe.peak, rel=0.02)
    assert all(p.grad.shape == p.shape for p in empty.parameters())
    gradients = sum(p.nbytes for p in empty.parameters())
    assert memory.held == gradients + result.untyped_storage().nbytes()
    del result
    for parameter in empty.parameters():
        parameter.grad = None
    assert memory.held == 0


def test_large_tensors_take_no_memory():
    with WithoutNumbers() as space, space.counting() as memory:
        huge = torch.empty(1 << 20, 1 << 20)  # 4 TiB
        twice = huge @ huge
        assert memory.held == 2 * 2**42
        del huge, twice
    assert memory.held == 0 and memory.peak == 2 * 2**42


def test_views_share_their_memory_and_outlive_what_they_look_at():
    with WithoutNumbers() as space, space.counting() as memory:
        base = torch.zeros(10, 100)
        part = base[5:].t()
        assert memory.held == 4000 and part.shape == (100, 5)
        assert part.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()
        del base
        assert memory.held == 4000
        del part
        assert memory.held == 0


def test_what_is_computed_of_numbers_alone_keeps_them():
    table = torch.tensor([1.0, 2.0, 4.0])
    with WithoutNumbers():
        made = (torch.arange(3) * 2 + 1).float() * table
        mixed = made + torch.randn(3)
        assert made.tolist() == [1.0, 6.0, 20.0]
        assert made[1].item() == 6.0 and (made > 5).nonzero().flatten().tolist() == [1, 2]
        table.mul_(2)
        # a number of which nothing is known is nearly nothing
        assert mixed[1].item() == 1e-8 and torch.randint(5, (1,)).item() == 0 and not bool(mixed[0] > 1)
    assert table.tolist() == [2.0, 4.0, 8.0]


def test_changes_that_are_not_known_leave_numbers_alone():
    table = torch.ones(3)
    with WithoutNumbers():
        result = table.add_(torch.randn(3))
        out = torch.empty(3)
        same = torch.add(out, 1, out=out)
        assert result is table and same is out
        assert out.numpy().tolist() == [0.0, 0.0, 0.0], "readable, and zero"
    assert table.tolist() == [1.0, 1.0, 1.0]


def test_shapes_that_depend_on_missing_numbers_are_an_error():
    with WithoutNumbers(), pytest.raises(Exception, match="nonzero"):
        torch.randn(3).nonzero()


def test_numbers_of_different_types_are_told_apart():
    """1, 1.0 and True are equal as keys of a dict."""
    with WithoutNumbers():
        whole = torch.zeros(3, dtype=torch.int64)
        assert [(whole * factor).dtype for factor in (1, 1.0, True)] == [torch.int64, torch.float32, torch.int64]


def test_sizes_that_floats_decide_over_are_told_apart():
    with WithoutNumbers():
        image = torch.zeros(1, 1, 8, 8)
        sizes = [F.interpolate(image, scale_factor=scale, mode="bilinear").shape[-1] for scale in (2.0, 0.5, 1.5)]
        assert sizes == [16, 4, 12]
        assert [torch.full((n,), 0.5).shape[0] for n in (1, 2)] == [1, 2]
        assert torch.arange(0.0, 1.0, 0.25).tolist() == [0.0, 0.25, 0.5, 0.75]


def test_counts_are_apart():
    with WithoutNumbers() as space:
        with space.counting() as first:
            kept = torch.zeros(10)
        with space.counting() as second:
            other = torch.zeros(20)
            assert (first.held, second.held) == (40, 80)
            del kept
            assert (first.held, second.held) == (0, 80)
        torch.zeros(30)
        assert second.peak == 80
        del other
    assert second.held == 0


def test_held_memory_counts_as_long_as_the_owner_lives():
    class Owner:
        pass

    memory, owner = HeldMemory(), Owner()
    memory.add(owner, 7)
    assert (memory.held, memory.peak) == (7, 7)
    del owner
    assert (memory.held, memory.peak) == (0, 7)
