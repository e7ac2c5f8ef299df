"""What every kind of adapter keeps to, on every kind of layer. Registering a kind enrols it."""

import copy

from modules.module.AdapterSet import AdapterSet
from modules.module.dense_weight import weight_shape
from modules.module.kinds import ADAPTER_CLASSES, FILE_CLASSES, class_of_layers
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.LoRAInit import LoRAInit
from modules.util.enum.OFTScaleMode import OFTScaleMode
from modules.util.enum.OFTSide import OFTSide
from modules.util.enum.PeftType import PeftType
from modules.util.ParameterInfo import get_parameter_info
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pytest

# name -> (layer, input shape); the large ones take the fused paths, see LARGE_INPUT in low_rank.py
LAYERS = {
    "linear": (lambda: nn.Linear(24, 36), (3, 7, 24)),
    "linear 2d": (lambda: nn.Linear(24, 12, bias=False), (5, 24)),
    "linear large": (lambda: nn.Linear(64, 96), (2, 1100, 64)),
    "conv 3x3": (lambda: nn.Conv2d(8, 12, 3, padding=1), (2, 8, 9, 7)),
    "conv 1x1": (lambda: nn.Conv2d(8, 12, 1, bias=False), (2, 8, 5, 4)),
    "conv stride": (lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1, padding_mode="circular"), (2, 8, 8, 8)),
    "conv grouped": (lambda: nn.Conv2d(8, 12, 3, padding=1, groups=2), (2, 8, 9, 7)),
    "conv large": (lambda: nn.Conv2d(32, 24, 3, padding=1), (2, 32, 48, 48)),
}
FEW = ("linear", "conv 3x3")
# More options by which a kind takes other paths; every kind is tested with its defaults, too.
VARIANTS: dict[tuple[PeftType, bool], dict[str, dict]] = {
    (PeftType.LORA, False): {
        "normal": {"lora_init": LoRAInit.NORMAL},
        "orthonormal": {"lora_init": LoRAInit.ORTHONORMAL},
    },
    (PeftType.LORA, True): {
        "output axis": {"lora_decompose_output_axis": True},
        "no epsilon": {"lora_decompose_norm_epsilon": False},
    },
    (PeftType.LOKR, False): {
        "whole": {"lokr_full_matrix": True},
        "both": {"lokr_decompose_both": True, "lokr_dim": 1},
        "tucker": {"lokr_use_tucker": True},
        "no trick": {"lokr_vec_trick": False},
        "magnitude": {"lokr_weight_decompose": True},
        "magnitude of inputs": {"lokr_weight_decompose": True, "lokr_dora_on_output": False, "lokr_vec_trick": False},
        "factor": {"lokr_decompose_factor": 2},
    },
    (PeftType.OFT_2, False): {
        "output": {"oft_side": OFTSide.OUTPUT},
        "shared": {"oft_block_share": True},
        "series": {"oft_cayley_neumann": True},
        "kernels": {"oft_kernels": True},
        "shared kernels": {"oft_kernels": True, "oft_block_share": True},
        "elements": {"oft_scaled": True},
        "rows": {"oft_scaled": True, "oft_scale_mode": OFTScaleMode.ROW, "oft_side": OFTSide.OUTPUT},
    },
    (PeftType.OFT_2, True): {"output": {"oft_side": OFTSide.OUTPUT}, "kernels": {"oft_kernels": True}},
}
KINDS = {
    f"{kind}{' decomposed' if decompose else ''} {variant}": {"peft_type": kind, "lora_decompose": decompose} | options
    for kind, decompose in ADAPTER_CLASSES
    for variant, options in ({"plain": {}} | VARIANTS.get((kind, decompose), {})).items()
}
# (start of a kind's name, layer, why it is not there)
EXEMPT: list[tuple[str, str, str]] = []
CASES = [
    (kind, layer)
    for kind in KINDS
    for layer in LAYERS
    if not any(kind.startswith(start) and layer == name for start, name, _ in EXEMPT)
]
FEW_CASES = [case for case in CASES if case[1] in FEW]
every_case = pytest.mark.parametrize(("kind", "name"), CASES)
few_cases = pytest.mark.parametrize(("kind", "name"), FEW_CASES)


class Root(nn.Module):
    """A component of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def config_of(kind: str, **options) -> TrainConfig:
    return TrainConfig(
        **{"lora_rank": 3, "lora_alpha": 2.0, "lokr_dim": 2, "oft_block_size": 4} | KINDS[kind] | options
    )


def make(kind: str, name: str, **options) -> tuple[Root, AdapterSet, Tensor]:
    """A component, a fresh adapter on it that is not hooked yet, and an input."""
    torch.manual_seed(len(kind + name))
    build, shape = LAYERS[name]
    root = Root(build())
    return root, AdapterSet("unet", root, config_of(kind, **options), seed=3), torch.randn(shape)


def move(adapters: AdapterSet) -> AdapterSet:
    """Makes it change something: as after some steps of training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return adapters


def moved_output(root: Root, adapters: AdapterSet, x: Tensor) -> Tensor:
    """What the component gives with the adapters, which have moved; they are not hooked any more."""
    move(adapters).hook()
    y = root(x)
    adapters.unhook()
    return y


def apply(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """The layer with another weight, by torch's own operations."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    return layer._conv_forward(x, weight, layer.bias)


def error(found: Tensor, expected: Tensor) -> float:
    """Relative to the largest entry, as a sum's rounding is to its largest terms."""
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


@every_case
def test_fresh_adapter_changes_nothing(kind, name):
    root, adapters, x = make(kind, name)
    plain = root(x)
    adapters.hook()
    assert torch.equal(root(x), plain)
    assert error(root.layer.weight + adapters.adapters["layer"].merged_delta(), root.layer.weight) < 1e-6  # float32


@every_case
def test_hooked_equals_merged_and_everything_can_be_undone(kind, name):
    root, adapters, x = make(kind, name)
    plain, weight = root(x), root.layer.weight.clone()
    move(adapters).hook()
    hooked = root(x)
    assert error(hooked, plain) > 1e-2
    adapters.unhook()
    assert torch.equal(root(x), plain)
    adapters.merge()
    # two roundings to float32 (1e-7) for each of at most 300 terms, which mostly cancel
    assert error(hooked, root(x)) < 1e-5
    adapters.unmerge()
    assert torch.equal(root.layer.weight, weight)


@every_case
def test_gradients_are_those_of_the_merged_weight(kind, name):
    root, adapters, x = make(kind, name)
    move(adapters).hook()
    x.requires_grad_()
    y = root(x)
    grad = torch.randn_like(y)
    y.backward(grad)
    found = [x.grad, *(parameter.grad for parameter in adapters.parameters())]
    assert all(gradient is not None and gradient.any() for gradient in found)
    assert root.layer.weight.grad is None

    x.grad = None
    for parameter in adapters.parameters():
        parameter.grad = None
    apply(root.layer, x, root.layer.weight + adapters.adapters["layer"].delta_weight()).backward(grad)
    for gradient, expected in zip(found, [x.grad, *(p.grad for p in adapters.parameters())], strict=True):
        # sums of up to 5,000 float32 products in another order
        assert error(gradient, expected) < 2e-5


@few_cases
def test_large_input_without_gradient_for_it(kind, name):
    """The first adapted layer of a model: its input needs no gradient, the adapter does."""
    root, adapters, x = make(kind, {"linear": "linear large", "conv 3x3": "conv large"}[name])
    move(adapters).hook()
    root(x).square().sum().backward()
    found = [parameter.grad.clone() for parameter in adapters.parameters()]
    for parameter in adapters.parameters():
        parameter.grad = None
    x.requires_grad_()
    root(x).square().sum().backward()
    # the same float32 sums in another order; shared blocks sum 200,000 products that mostly cancel
    assert all(error(a, p.grad) < 1e-4 for a, p in zip(found, adapters.parameters(), strict=True))
    adapters.requires_grad_(False)
    gradient, x.grad = x.grad, None
    root(x).square().sum().backward()
    assert error(x.grad, gradient) < 1e-5


@few_cases
def test_gradient_checkpointing_gives_the_same_gradients(kind, name):
    gradients = []
    for use in (False, True):
        root, adapters, x = make(kind, name)
        move(adapters).hook()
        inner = root.layer.forward
        if use:
            root.forward = lambda x, inner=inner: checkpoint(inner, x, use_reentrant=False)
        root(x.requires_grad_()).square().sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in adapters.parameters())])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@few_cases
def test_autocast_and_half_base(kind, name):
    root, adapters, x = make(kind, name)
    move(adapters).hook()
    expected = root(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = root(x)
    mixed.float().square().sum().backward()
    assert mixed.dtype == torch.bfloat16
    assert all(parameter.grad.dtype == torch.float32 for parameter in adapters.parameters())
    root.to(torch.bfloat16)
    half = root(x.bfloat16())
    half.float().square().sum().backward()
    assert half.dtype == torch.bfloat16
    for found in (mixed, half):
        # bfloat16 holds 8 bits: the weight, the input, the adapter and the result are each rounded to 0.4 %
        assert error(found.float(), expected) < 0.03


@few_cases
def test_half_precision_parameters(kind, name):
    root, adapters, x = make(kind, name, lora_weight_dtype=DataType.BFLOAT_16)
    plain = root(x)
    adapters.hook()
    assert torch.equal(root(x), plain)
    assert torch.bfloat16 in {parameter.dtype for parameter in adapters.parameters()}
    move(adapters)
    y = root(x)
    y.square().sum().backward()
    assert y.dtype == torch.float32 and error(y, plain) > 1e-2
    assert all(parameter.grad is not None for parameter in adapters.parameters())


@every_case
def test_what_a_file_holds_makes_the_same_adapter(kind, name):
    root, adapters, x = make(kind, name)
    expected = moved_output(root, adapters, x)
    parts = {layer: {part: t.clone() for part, t in own.items()} for layer, own in adapters.layers().items()}
    assert class_of_layers(parts) is adapters.adapter_class
    # everything that the file knows comes from there, the rest (such as Neumann's series) from the config
    others = {"lora_rank": 7, "lokr_dim": 5, "oft_block_size": 8, "lora_alpha": 5.0, "lokr_decompose_factor": 3}
    again = AdapterSet("unet", root, config_of(kind, **others), start=parts)
    again.hook()
    # the same numbers; only a scale may be multiplied into them and out again
    assert error(root(x), expected) < 2e-6
    again.unhook()
    for part, tensor in again.layers()["layer"].items():
        assert torch.allclose(tensor.float(), parts["layer"][part].float(), rtol=1e-6, atol=0)


@every_case
def test_resuming_is_exact(kind, name):
    root, adapters, x = make(kind, name)
    expected = moved_output(root, adapters, x)
    state = {key: tensor.clone() for key, tensor in adapters.state_dict().items()}
    other = AdapterSet("unet", root, config_of(kind), seed=99)
    parameters = other.parameters()
    other.load_state_dict(state)
    assert all(a is b for a, b in zip(parameters, other.parameters(), strict=True))  # an optimizer may hold them
    other.hook()
    assert torch.equal(root(x), expected)
    for key, tensor in other.state_dict().items():
        assert torch.equal(tensor, state[key]) and tensor.dtype == state[key].dtype


@few_cases
def test_parts_that_do_not_fit_are_named(kind, name):
    _, adapters, _ = make(kind, name)
    adapter = adapters.adapters["layer"]
    parts = {part: tensor.clone() for part, tensor in adapter.parts().items()}
    changes = [{"foreign_part": torch.zeros(3)}]
    for part, tensor in parts.items():
        if tensor.dim() > 1:
            changes.append({part: None})
            changes.append({part: torch.rand(3 * len(tensor), *tensor.shape[1:])})
            changes.append({part: torch.zeros(())})
    for change in changes:
        changed = {part: tensor for part, tensor in (parts | change).items() if tensor is not None}
        with pytest.raises(UserError) as caught:
            adapter.load_parts(changed)
        assert "unet.layer" in str(caught.value) and "\n" not in str(caught.value), change


@few_cases
def test_files_that_do_not_fit_are_refused_before_an_adapter_is_made(kind, name):
    root, adapters, _ = make(kind, name)
    parts = adapters.adapters["layer"].parts()
    for part, tensor in parts.items():
        if tensor.dim() > 1:
            rows = torch.rand(3 * len(tensor), *tensor.shape[1:])
            for wrong in (torch.zeros(()), torch.zeros(0, 5), rows, torch.cat([tensor] * 2, -1)):
                with pytest.raises(UserError, match=r"unet\.layer"):
                    AdapterSet.from_parts("unet", root, {"layer": dict(parts) | {part: wrong}})


@few_cases
def test_dropout_acts_in_training_only(kind, name):
    root, adapters, x = make(kind, name, dropout_probability=0.5)
    move(adapters).hook()
    root.eval()  # the base model's mode does not matter
    torch.manual_seed(0)
    draws = [root(x) for _ in range(8)]
    assert any(not torch.equal(draws[0], draw) for draw in draws[1:])
    draws[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters())
    adapters.eval()
    steady = root(x)
    assert torch.equal(root(x), steady)
    without, same, _ = make(kind, name)
    move(same).hook()
    # the other form of the same sum
    assert error(without(x), steady) < 1e-5


@every_case
def test_parameters_are_described(kind, name):
    _, adapters, _ = make(kind, name)
    infos = [get_parameter_info(parameter) for parameter in adapters.parameters()]
    names = {info.name for info in infos}
    assert len(names) == len(infos) and names <= adapters.state_dict().keys()
    for info in infos:
        assert (info.component, info.layer) == ("unet", "layer") and info.forward_scale > 0
        partner = next((other for other in infos if other.name == info.pair), None)
        assert info.pair is None or partner.pair == info.name


@few_cases
def test_start_values_depend_on_seed_and_name_alone(kind, name):
    root, adapters, _ = make(kind, name)
    torch.manual_seed(77)
    for seed, component, same in ((3, "unet", True), (4, "unet", False), (3, "other", False)):
        other = AdapterSet(component, copy.deepcopy(root), config_of(kind), seed=seed)
        pairs = list(zip(adapters.parameters(), other.parameters(), strict=True))
        drawn = [pair for pair in pairs if pair[0].unique().numel() > 1 and pair[0].shape[-1] * pair[0].shape[0] > 0]
        equal = all(torch.equal(*pair) for pair in pairs)
        random = [
            pair for pair in drawn if get_parameter_info(pair[0]).role not in ("DORA_SCALE", "OFT")
        ]  # the magnitude is the layer's, rotations start at none
        assert equal == (same or not random)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith(("LORA", "LOHA"))])
def test_start_values_are_scaled(kind):
    """What rebasing a config to another alpha relies on, see docs/alpha.md."""
    _, adapters, _ = make(kind, "linear")
    _, scaled, _ = make(kind, "linear", lora_init_scale=0.25)
    drawn = 0
    for one, other in zip(adapters.parameters(), scaled.parameters(), strict=True):
        is_length = get_parameter_info(one).role == "DORA_SCALE"
        assert torch.equal(other, one if is_length else 0.25 * one)  # a power of two: exact
        drawn += bool(not is_length and one.any())
    assert drawn >= 1


@few_cases
def test_on_meta(kind, name):
    """Shapes and names of a full-size model, without its memory."""
    root, adapters, _ = make(kind, name)
    on_meta = AdapterSet("unet", copy.deepcopy(root).to("meta"), config_of(kind))
    assert all(parameter.is_meta for parameter in on_meta.parameters())
    for found, expected in zip(on_meta.parameters(), adapters.parameters(), strict=True):
        assert found.shape == expected.shape and found.dtype == expected.dtype


@few_cases
def test_layers_that_are_called_use_their_own_forward(kind, name):
    """A layer that someone replaced, or a subclass such as a quantized one, is called and not imitated."""
    root, adapters, x = make(kind, name)
    expected = moved_output(root, adapters, x)
    calls = []
    own = root.layer.forward
    root.layer.forward = lambda x: calls.append(x.shape) or own(x)
    adapters.hook()
    assert error(root(x), expected) < 1e-5  # the other form of the same sum
    assert len(calls) == 1
    adapters.unhook()
    assert root.layer.forward(x).shape == expected.shape


@few_cases
def test_weights_are_never_formed_wrongly_after_a_step(kind, name):
    """What is computed once per forward follows the weights, whether or not the component ran since they changed."""
    root, adapters, x = make(kind, name)
    adapters.hook()
    root(x)
    move(adapters)
    layer, adapter = root.layer, adapters.adapters["layer"]
    expected = apply(layer, x, layer.weight + adapter.merged_delta())
    assert error(layer(x), expected) < 1e-5  # the layer by itself
    for parameter in adapters.parameters():
        parameter.data.mul_(0.5)  # leaves no trace in torch's version counter
    found = root(x)
    assert error(found, apply(layer, x, layer.weight + adapter.merged_delta())) < 1e-5


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.endswith((" plain", " magnitude"))])
def test_compiles(kind):
    """Without a break of the graph, but for rotations: they are made outside of it, once for all layers."""
    root, adapters, x = make(kind, "linear")
    move(adapters).hook()
    expected = root(x)
    found = torch.compile(root.layer, backend="eager", fullgraph=not kind.startswith("OFT_2"))(x)
    # the same operations, some without the fused form
    assert error(found, expected) < 1e-6
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters())


def test_each_exemption_is_of_something_that_exists_and_has_a_reason():
    for start, layer, reason in EXEMPT:
        assert any(kind.startswith(start) for kind in KINDS) and layer in LAYERS and len(reason) > 20
    assert set(VARIANTS) <= set(ADAPTER_CLASSES) | {(PeftType.OFT_2, False), (PeftType.OFT_2, True)}


def test_kinds_are_told_apart_by_their_parts():
    kinds = {*ADAPTER_CLASSES.values(), *FILE_CLASSES}
    found = set()
    for kind in KINDS:
        _, adapters, _ = make(kind, "linear")
        found.add(class_of_layers({"layer": adapters.layers()["layer"]}))
    assert found | set(FILE_CLASSES) == kinds
    assert class_of_layers({"layer": {"diff": torch.zeros(weight_shape(nn.Linear(2, 3)))}}) in FILE_CLASSES
