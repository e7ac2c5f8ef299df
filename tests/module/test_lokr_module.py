"""LoKr against its definition: forms, the product without kron, magnitude, and files of other programs."""

from modules.module.AdapterSet import AdapterSet
from modules.module.lokr_form import LoKrForm, factorization, form_of_options
from modules.module.LoKrModule import LoKrModule
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.enum.PeftType import PeftType
from modules.util.ParameterInfo import get_parameter_info
from modules.util.UserError import UserError
from tests.module.memory_probe import MemoryProbe

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pytest


def make(layer: nn.Module, **options) -> LoKrModule:
    torch.manual_seed(0)
    config = TrainConfig(**{"peft_type": PeftType.LOKR, "lokr_dim": 2, "lora_alpha": 1.0} | options)
    adapter = LoKrModule.create(layer, "unet", "a", config, 0)
    with torch.no_grad():
        for parameter in adapter.factors():
            parameter.normal_()
    return adapter


def kron(w1: Tensor, w2: Tensor) -> Tensor:
    """Block (a, j) of the result is w1[a, j]·w2."""
    rows = [torch.cat([w1[a, j] * w2 for j in range(w1.shape[1])], 1) for a in range(w1.shape[0])]
    return torch.cat(rows, 0)


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        (320, -1, (16, 20)),
        (1280, -1, (32, 40)),
        (768, -1, (24, 32)),
        (127, -1, (1, 127)),  # a prime
        (36, -1, (6, 6)),
        (320, 8, (8, 40)),
        (320, 80, (4, 80)),  # the factor or its counterpart, the smaller one first
        (320, 7, (5, 64)),  # the largest divisor that is not above the factor
        (320, 100, (16, 20)),
        (12, 1, (1, 12)),
    ],
)
def test_factorization(size, factor, expected):
    assert factorization(size, factor) == expected


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({}, {"lokr_w1": (4, 4), "lokr_w2_a": (5, 2), "lokr_w2_b": (2, 54)}),
        ({"lokr_decompose_both": True, "lokr_dim": 1}, {"lokr_w1_a": (4, 1), "lokr_w1_b": (1, 4)}),
        ({"lokr_full_matrix": True}, {"lokr_w1": (4, 4), "lokr_w2": (5, 6, 3, 3)}),
        ({"lokr_use_tucker": True}, {"lokr_t2": (2, 2, 3, 3), "lokr_w2_a": (2, 5), "lokr_w2_b": (2, 6)}),
        ({"lokr_dim": 3}, {"lokr_w1": (4, 4), "lokr_w2": (5, 6, 3, 3)}),  # not less than half of 6
        ({"lokr_decompose_factor": 2}, {"lokr_w1": (2, 2), "lokr_w2_a": (10, 2), "lokr_w2_b": (2, 108)}),
        ({"lokr_weight_decompose": True}, {"dora_scale": (20, 1, 1, 1)}),
        ({"lokr_weight_decompose": True, "lokr_dora_on_output": False}, {"dora_scale": (1, 24, 1, 1)}),
    ],
)
def test_shapes_follow_the_options(options, shapes):
    parts = make(nn.Conv2d(24, 20, 3), **options).parts()
    assert {part: tuple(parts[part].shape) for part in shapes} == shapes
    assert ("dora_scale" in parts) == ("dora_scale" in shapes)


def test_a_rank_that_is_too_large_is_noted():
    root = nn.Sequential(nn.Linear(24, 20))
    config = TrainConfig(peft_type=PeftType.LOKR, lokr_dim=3)
    assert AdapterSet("unet", root, config).notes == [
        "unet.0: lokr_dim 3 is at least half of LoKr's second factor 5 x 6, which is kept whole"
    ]
    assert not AdapterSet("unet", root, config.model_copy(update={"lokr_full_matrix": True})).notes


FORMS = {
    "low rank": {},
    "both": {"lokr_decompose_both": True, "lokr_dim": 1},
    "whole": {"lokr_full_matrix": True},
    "tucker": {"lokr_use_tucker": True},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("conv", [False, True])
def test_delta_is_the_kronecker_product(form, conv):
    layer = nn.Conv2d(24, 20, 3, padding=1) if conv else nn.Linear(24, 20)
    adapter = make(layer, lora_alpha=0.5, **FORMS[form])
    parts = {name: tensor.double() for name, tensor in adapter.parts().items()}
    w1 = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if "lokr_w2" in parts:
        w2, scale = parts["lokr_w2"], 1.0
    else:
        scale = 0.5 / adapter.rank
        if "lokr_t2" in parts:
            w2 = torch.einsum("pqkl,po,qi->oikl", parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"])
        else:
            w2 = (parts["lokr_w2_a"] @ parts["lokr_w2_b"]).view(5, 6, *layer.weight.shape[2:])
    expected = scale * kron(w1, w2)
    # products of float32 numbers of about 1, sums of at most four
    assert torch.allclose(adapter.delta_weight().double(), expected, atol=1e-5)
    # and so is the forward pass that never forms it
    x = torch.randn(2, 24, 7, 6) if conv else torch.randn(3, 24)
    plain = layer(x)
    adapter.hook()
    added = (layer(x) - plain).double()
    term = F.conv2d(x.double(), expected, padding=1) if conv else x.double() @ expected.t()
    assert (added - term).abs().max() < 1e-5 * term.abs().max()  # float32 sums of 216 products
    adapter.vec_trick = False
    assert ((layer(x) - plain).double() - term).abs().max() < 1e-5 * term.abs().max()


@pytest.mark.parametrize("options", [{}, {"lokr_weight_decompose": True, "lokr_dora_on_output": False}])
@pytest.mark.parametrize("build", [lambda: nn.Linear(96, 80), lambda: nn.Conv2d(24, 32, 3, padding=1)])
def test_the_product_is_never_formed(build, options):
    layer = build()
    adapter = make(layer, **options)
    adapter.hook()
    x = torch.randn(8, 96) if isinstance(layer, nn.Linear) else torch.randn(1, 24, 5, 5)
    with MemoryProbe([layer.weight]) as probe:
        layer(x.requires_grad_()).sum().backward()
    assert probe.largest()[0] < layer.weight.numel(), probe.largest()
    adapter.vec_trick = False
    with MemoryProbe([layer.weight]) as probe:
        layer(x)
    assert probe.largest()[0] >= layer.weight.numel()


@pytest.mark.parametrize("on_output", [True, False])
@pytest.mark.parametrize("layer", [nn.Linear(24, 20), nn.Conv2d(12, 20, 3, groups=2), nn.Linear(600, 900)])
def test_lengths_are_those_of_the_whole_weight(layer, on_output):
    """The last layer takes more than one slice, see SLICE in dense_weight.py."""
    adapter = make(layer, lokr_weight_decompose=True, lokr_dora_on_output=on_output)
    w1, w2 = adapter._whole(adapter.factors())
    v = layer.weight.double() + adapter.scale * kron(w1.double(), w2.double())
    expected = torch.stack([vector.norm() for vector in (v if on_output else v.transpose(0, 1))])
    assert (adapter._norms() / expected - 1).abs().max() < 1e-6  # float32 sums
    with torch.no_grad():
        adapter.magnitude.mul_(2)
    lengths = expected.view([-1 if axis == (0 if on_output else 1) else 1 for axis in range(v.dim())])
    merged = adapter.magnitude.double() * v / lengths
    found = layer.weight.double() + adapter.merged_delta().double()
    assert (found - merged).abs().max() < 1e-6 * merged.abs().max()


def test_alpha_is_ignored_where_both_factors_are_whole():
    layer = nn.Linear(24, 20)
    adapter = make(layer, lokr_full_matrix=True, lora_alpha=0.1, lokr_dim=8)
    assert adapter.scale == 1.0 and adapter.parts()["alpha"] == 8
    w1, w2 = adapter.parts()["lokr_w1"], adapter.parts()["lokr_w2"]
    assert torch.equal(adapter.delta_weight(), torch.kron(w1, w2))
    adapter.load_parts({"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(3.0)})
    assert torch.equal(adapter.delta_weight(), torch.kron(w1, w2))


# other programs' forms that no option here gives: sides in another order, w1 of another rank, four axes
FOREIGN = {
    "larger first": {"lokr_w1": (10, 3), "lokr_w2": (2, 8)},
    "other rank": {"lokr_w1_a": (4, 3), "lokr_w1_b": (3, 2), "lokr_w2_a": (5, 2), "lokr_w2_b": (2, 12)},
    "whole second": {"lokr_w1_a": (4, 3), "lokr_w1_b": (3, 2), "lokr_w2": (5, 12)},
}


@pytest.mark.parametrize("form", FOREIGN)
def test_any_form_is_continued(form):
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(24, 20))
    parts = {part: torch.randn(shape) for part, shape in FOREIGN[form].items()} | {"alpha": torch.tensor(1.0)}
    adapters = AdapterSet.from_parts("unet", root, {"0": parts})
    adapter = adapters.adapters["0"]
    w1 = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    w2 = parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"] @ parts["lokr_w2_b"]
    scale = {"larger first": 1.0, "other rank": 1 / 2, "whole second": 1 / 3}[form]
    assert torch.allclose(adapter.delta_weight(), scale * kron(w1, w2), atol=1e-5)  # float32 products
    assert adapters.layers()["0"].keys() == parts.keys()
    names = {get_parameter_info(parameter).name for parameter in adapters.parameters()}
    assert names == {f"unet.0.{part}" for part in FOREIGN[form]}
    # the new tensors are trained
    adapters.hook()
    root(torch.randn(3, 24)).sum().backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters())


def test_resuming_keeps_the_form():
    layer = nn.Linear(24, 20)
    whole, low = make(layer, lokr_full_matrix=True), make(layer)
    with pytest.raises(UserError, match="lokr_w2_a, lokr_w2_b, which is not LoKr of this form"):
        whole.load_state(low.state())
    parameters = list(low.parameters())
    low.load_state(make(layer).state())
    assert all(one is two for one, two in zip(parameters, low.parameters(), strict=True))


def test_four_axes_of_low_rank_factors_are_read():
    layer = nn.Conv2d(24, 20, 3)
    adapter = make(layer)
    expected = adapter.delta_weight()
    parts = dict(adapter.parts())
    parts["lokr_w2_b"] = parts["lokr_w2_b"].view(2, 6, 3, 3)
    parts["lokr_w2_a"] = parts["lokr_w2_a"].view(5, 2, 1, 1)
    adapter.load_parts(parts)
    assert torch.equal(adapter.delta_weight(), expected)


def test_start_values():
    adapter = LoKrModule.create(
        nn.Linear(400, 400), "unet", "a", TrainConfig(peft_type=PeftType.LOKR, lokr_dim=4), seed=1
    )
    assert adapter.w2_b.count_nonzero() == 0
    # Kaiming with a = √5: uniform in ±1/√fan_in
    assert 0.95 / 20**0.5 < adapter.w1.abs().max() <= 1 / 20**0.5
    assert 0.9 / 4**0.5 < adapter.w2_a.abs().max() <= 1 / 4**0.5


def test_roles_follow_the_axis_of_ranks():
    def roles(**options) -> dict[str, ParameterRole]:
        adapter = make(nn.Conv2d(24, 20, 3), **options)
        return {name: get_parameter_info(parameter).role for name, parameter in adapter.named_parameters()}

    hidden, up, down = ParameterRole.HIDDEN, ParameterRole.LORA_UP, ParameterRole.LORA_DOWN
    assert roles() == {"w1": hidden, "w2_a": up, "w2_b": down}
    assert roles(lokr_use_tucker=True) == {"w1": hidden, "w2_a": down, "w2_b": down, "t2": hidden}
    assert roles(lokr_full_matrix=True, lokr_weight_decompose=True) == {
        "w1": hidden,
        "w2": hidden,
        "magnitude": ParameterRole.DORA_SCALE,
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lokr_w1": None}, "lokr_w1 is missing"),
        ({"lokr_w2_b": None}, "lokr_w2_b is missing"),
        ({"lokr_w1": torch.zeros(4, 5)}, "make up no weight of the shape [20, 24]"),
        ({"lokr_w2_b": torch.zeros(2, 7)}, "lokr_w2_b has the shape [2, 7], expected [2, 6]"),
        ({"dora_scale": torch.ones(20, 1)}, "dora_scale, which is not LoKr"),
        ({"lokr_w1": torch.zeros(4)}, "lokr_w1 has the shape [4], expected a matrix"),
    ],
)
def test_wrong_parts_are_named(change, words):
    adapter = make(nn.Linear(24, 20))
    parts = {name: tensor for name, tensor in (adapter.parts() | change).items() if tensor is not None}
    with pytest.raises(UserError) as error:
        adapter.load_parts(parts)
    assert words in str(error.value) and "unet.a" in str(error.value)


def test_form_of_options_of_layers_that_cannot_be_split():
    form = form_of_options(torch.Size((7, 13)), 2, -1, False, False, False)
    assert form == LoKrForm((1, 1), (7, 13), (), None, 2, False)
