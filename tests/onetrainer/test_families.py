"""First and last layers of what OneTrainer trains as a whole, on small models of the real classes."""

from typing import Any

from scaled_onetrainer.describe import describe_component
from scaled_onetrainer.families import ENDS, ends_of
from tests.onetrainer.tiny_components import CLASSES, tiny_components
from tests.onetrainer.tiny_inputs import INPUTS

from torch import nn
from torch.nn.modules.conv import _ConvNd

import pytest

LAYERS = (nn.Linear, _ConvNd)
# text passes blocks of its own width before it enters the model's
AFTER_BLOCKS = {"Krea2Transformer2DModel": {"txt_in.linear_1"}}
# the time shifts and scales here without a layer before, as it does in every block
LIKE_IN_BLOCKS = {"CosmosTransformer3DModel": {"norm_out.linear_1"}}


def matches(path: str, layer: str) -> bool:
    """Whether a path with stars is that of a layer."""
    names, wanted = layer.split("."), path.split(".")
    return len(names) == len(wanted) and all(want in ("*", name) for want, name in zip(wanted, names, strict=True))


def test_every_class_of_the_table_is_checked_here():
    assert sorted(CLASSES) == sorted(ENDS)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_named_layer_is_one_of_the_class(kind: str):
    layers = {
        name
        for component in tiny_components(kind)
        for name, module in component.named_modules()
        if isinstance(module, LAYERS)
    }
    for path in (*ENDS[kind].first, *ENDS[kind].last):
        assert any(matches(path, layer) for layer in layers), path


@pytest.mark.parametrize("kind", CLASSES)
def test_each_parameter_has_its_role(kind: str):
    for component in tiny_components(kind):
        assert type(component).__name__ == kind
        describe_component(component, "component")
        names = set()
        for name, parameter in component.named_parameters():
            layer, _, _leaf = name.rpartition(".")
            owner, info = component.get_submodule(layer), parameter.parameter_info
            if isinstance(owner, nn.Embedding):
                expected = ("INPUT", False)
            elif not isinstance(owner, LAYERS) or parameter.dim() == 1:
                # norms, biases, tables that shift and scale, tokens; a router of experts is a matrix
                expected = ("HIDDEN" if type(owner).__name__ == "MoEGate" else "VECTOR", False)
            elif any(matches(path, layer) for path in ENDS[kind].first):
                expected = ("INPUT", True)
            else:
                last = any(matches(path, layer) for path in ENDS[kind].last)
                expected = ("OUTPUT" if last else "HIDDEN", False)
            assert (info.role, info.matrix) == expected, name
            assert info.name == f"component.{name}"
            names.add(info.name)
        assert len(names) == len(list(component.parameters()))


def runs(component: nn.Module, inputs: dict[str, Any]) -> tuple[list[str], set[str]]:
    """Paths of the layers in the order in which they run, and of those whose input no matrix has made."""
    order, fed = [], set()

    def look(layer: str, given: tuple[Any, ...]) -> None:
        order.append(layer)
        if not given[0].requires_grad:
            fed.add(layer)

    for name, module in component.named_modules():
        if isinstance(module, LAYERS):
            module.register_forward_pre_hook(lambda _module, given, name=name: look(name, given))
    for parameter in component.parameters():
        # norms and tokens stand between what comes from outside and its layer, and count as nothing
        parameter.requires_grad_(parameter.parameter_info.role != "VECTOR")
    component(**inputs)
    return order, fed


def in_a_block(layer: str) -> bool:
    """Whether a layer is one of several like ones, or lies in such a block."""
    return any(segment.isdigit() for segment in layer.split(".")[1:-1])


@pytest.mark.parametrize("kind", INPUTS)
def test_first_and_last_layers_are_those_that_run_as_such(kind: str):
    """What comes from outside meets the first layers before any other, and the last layer runs after all others."""
    found = set()
    for component in tiny_components(kind, "cpu"):
        describe_component(component, "component")
        ends = ends_of(component)
        assert ends is not None
        order, fed = runs(component, INPUTS[kind](component))
        first = set(ends.first) & set(order)
        assert first - fed <= AFTER_BLOCKS.get(kind, set())
        assert {layer for layer in fed - first if not in_a_block(layer)} == LIKE_IN_BLOCKS.get(kind, set())
        assert order[-1] in ends.last
        found |= first
    for path in ENDS[kind].first:
        assert path == "siglip_embedder.1" or any(matches(path, layer) for layer in found), path


def test_a_class_that_is_not_known_has_its_ends_guessed():
    component = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    assert ends_of(component) is None
    describe_component(component, "component")
    assert [layer.weight.parameter_info.role for layer in component] == ["INPUT", "HIDDEN", "OUTPUT"]


def test_a_component_keeps_its_names_when_it_is_described_again():
    component = next(tiny_components("ZImageTransformer2DModel"))
    describe_component(component, "transformer")
    before = {parameter: parameter.parameter_info for parameter in component.parameters()}
    describe_component(component, "transformer")
    assert all(parameter.parameter_info is info for parameter, info in before.items())
    assert component.x_pad_token.parameter_info.name == "transformer.x_pad_token"


def test_wrappers_hide_no_layer():
    class ZImageTransformer2DModel(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self._orig_mod = inside

    ends = ends_of(ZImageTransformer2DModel(next(tiny_components("ZImageTransformer2DModel"))))
    assert ends is not None
    assert ends.first == ("all_x_embedder.2-1", "t_embedder.mlp.0", "cap_embedder.1")
    assert ends.last == ("all_final_layer.2-1.linear",)
