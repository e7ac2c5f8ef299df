"""LoHa against its definition, in every form in which files hold it."""

from modules.module.LoHaModule import LoHaModule
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import get_parameter_info
from modules.util.UserError import UserError
from tests.module.memory_probe import MemoryProbe

import torch
from torch import Tensor, nn

import pytest

RANK, OUT, IN = 3, 8, 5


def make(conv: bool = False, **options) -> tuple[nn.Module, LoHaModule]:
    torch.manual_seed(0)
    layer = nn.Conv2d(IN, OUT, 3, padding=1) if conv else nn.Linear(IN, OUT)
    return layer, LoHaModule(layer, "unet", "a", **{"rank": RANK, "alpha": 1.5} | options)


def random_parts(*shapes: tuple[int, ...]) -> dict[str, Tensor]:
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    return {name: torch.randn(shape) for name, shape in zip(names, shapes, strict=False)}


def test_delta_is_the_product_of_two_low_rank_matrices():
    _, adapter = make()
    parts = random_parts((OUT, RANK), (RANK, IN), (OUT, RANK), (RANK, IN)) | {"alpha": torch.tensor(1.5)}
    adapter.load_parts(parts)
    w1_a, w1_b, w2_a, w2_b = (parts[name].double() for name in list(parts)[:4])
    for o in range(OUT):
        for i in range(IN):
            expected = 1.5 / RANK * (w1_a[o] @ w1_b[:, i]) * (w2_a[o] @ w2_b[:, i])
            # two products of three float32 terms each
            assert abs(adapter.delta_weight()[o, i] - expected) < 1e-5


def test_alpha_over_rank_scales():
    _, adapter = make()
    parts = random_parts((OUT, RANK), (RANK, IN), (OUT, RANK), (RANK, IN))
    adapter.load_parts(parts)  # no alpha: scale 1
    whole = adapter.delta_weight()
    adapter.load_parts(parts | {"alpha": torch.tensor(0.5)})
    # one rounding
    assert torch.allclose(adapter.delta_weight(), whole * (0.5 / RANK), rtol=1e-6)
    assert LoHaModule.options_of(parts, nn.Linear(IN, OUT))["lora_alpha"] == RANK


def test_four_axes_are_read():
    """As OneTrainer writes convolutions."""
    _, adapter = make(conv=True)
    a, b = (OUT, RANK, 1, 1), (RANK, IN, 3, 3)
    parts = random_parts(a, b, a, b)
    adapter.load_parts(parts)
    w1, w2 = (torch.einsum("or,rikl->oikl", parts[f"hada_w{n}_a"][..., 0, 0], parts[f"hada_w{n}_b"]) for n in (1, 2))
    # sums of three float32 products, in another order
    assert torch.allclose(adapter.delta_weight(), w1 * w2, atol=1e-5)
    assert all(tensor.dim() <= 2 for tensor in adapter.parts().values())  # what ComfyUI can read


def test_cores_are_read():
    """Tucker's form of LyCORIS, of which only one half may have it."""
    _, adapter = make(conv=True)
    a, b, t = (RANK, OUT), (RANK, IN), (RANK, RANK, 3, 3)
    parts = random_parts(a, b, a, b, t, t)
    adapter.load_parts(parts)
    w1, w2 = torch.zeros(2, OUT, IN, 3, 3)
    for n, target in ((1, w1), (2, w2)):
        core, left, right = parts[f"hada_t{n}"], parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"]
        for p in range(RANK):
            for q in range(RANK):
                target += left[p][:, None, None, None] * right[q][None, :, None, None] * core[p, q]
    # sums of nine float32 products, in another order
    assert torch.allclose(adapter.delta_weight(), w1 * w2, atol=1e-4)
    half = {name: parts[name] for name in ("hada_w1_a", "hada_w1_b", "hada_t1")}
    half |= {"hada_w2_a": torch.randn(OUT, RANK), "hada_w2_b": torch.randn(RANK, IN * 9)}
    adapter.load_parts(half)
    w2 = (half["hada_w2_a"] @ half["hada_w2_b"]).view(OUT, IN, 3, 3)
    assert torch.allclose(adapter.delta_weight(), w1 * w2, atol=1e-4)


def test_start_values():
    layer = nn.Linear(60, 80)
    adapter = LoHaModule(layer, "unet", "a", rank=32, alpha=1)
    assert not adapter.w2_a.any()
    for name, spread in (("w1_a", 0.1), ("w1_b", 1.0), ("w2_b", 1.0)):
        # 1,920 draws or more: a relative standard error of 1.6 %
        assert abs(getattr(adapter, name).std() / spread - 1) < 0.07
    assert not torch.equal(adapter.w1_b, adapter.w2_b)


def test_roles():
    _, adapter = make(conv=True)
    roles = {name: get_parameter_info(parameter).role for name, parameter in adapter.named_parameters()}
    up, down = ParameterRole.LORA_UP, ParameterRole.LORA_DOWN
    assert roles == {"w1_a": up, "w1_b": down, "w2_a": up, "w2_b": down}
    assert all(get_parameter_info(parameter).pair is None for parameter in adapter.parameters())


def test_the_change_is_not_kept_for_the_backward_pass():
    layer = nn.Linear(96, 80)
    adapter = LoHaModule(layer, "unet", "a", rank=2, alpha=1)
    nn.init.ones_(adapter.w2_a)
    adapter.hook()
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() != layer.weight.untyped_storage().data_ptr():
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(torch.randn(4, 96, requires_grad=True))
    y.sum().backward()
    assert kept and max(kept) < layer.weight.numel()
    with MemoryProbe([layer.weight]) as probe:
        layer(torch.randn(4, 96))
    assert probe.largest()[0] >= layer.weight.numel()  # it is made, for a moment


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hada_w1_b": None}, "hada_w1_b is missing"),
        ({"hada_w2_b": torch.zeros(7, IN)}, "its rank is 7, expected 3. Set lora_rank to 7"),
        ({"hada_w2_a": torch.zeros(OUT + 1, RANK)}, r"hada_w2_a has the shape [9, 3], expected [8, 3]"),
        ({"hada_t1": torch.zeros(2, 2, 3, 3)}, "hada_t1 has the shape [2, 2, 3, 3], expected [8, 3, height, width]"),
        ({"dora_scale": torch.ones(1, IN)}, "dora_scale, which is not LoHa"),
        ({"alpha": torch.ones(2)}, "alpha holds 2 numbers"),
    ],
)
def test_wrong_parts_are_named(change, words):
    _, adapter = make()
    parts = {name: tensor for name, tensor in (adapter.parts() | change).items() if tensor is not None}
    with pytest.raises(UserError) as error:
        adapter.load_parts(parts)
    assert words in str(error.value) and "unet.a" in str(error.value)
