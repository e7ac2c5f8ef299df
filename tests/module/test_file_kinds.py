"""What every file kind keeps to. Registering a kind enrols it."""

from itertools import combinations

from modules.module.AdapterLayout import AdapterLayout
from modules.module.AdapterModule import AdapterModule
from modules.module.FileKind import ALPHA, FileKind, PartError, layer_sides
from modules.module.kinds import ADAPTER_CLASSES, FILE_CLASSES, file_kind_named, file_kinds
from modules.module.magnitude import DORA_SCALE
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.OFTSide import OFTSide

import torch
from torch import nn

import pytest

LAYERS = {
    "linear": lambda: nn.Linear(24, 36),
    "conv 3x3": lambda: nn.Conv2d(8, 12, 3),
    "conv 1x1": lambda: nn.Conv2d(8, 12, 1),
}
SIZES = {"lora_rank": 3, "lora_alpha": 2.0, "lokr_dim": 2, "oft_block_size": 4}
# the options by which one class comes to several kinds, or forms
VARIANTS = ({}, {"oft_side": OFTSide.OUTPUT}, {"lokr_weight_decompose": True}, {"lokr_full_matrix": True})
CLASSES = [*ADAPTER_CLASSES.values(), *FILE_CLASSES]
CASES = [(adapter, name, options) for adapter in CLASSES for name in LAYERS for options in VARIANTS]
LAYOUTS = [
    AdapterLayout(),
    AdapterLayout(a_b=True),
    AdapterLayout(kernels=True),
    AdapterLayout(cores=True, kernels=True),
]


def make(adapter: type[AdapterModule], name: str, options: dict) -> tuple[AdapterModule, FileKind]:
    """An adapter with random weights, and its file kind by its parts."""
    torch.manual_seed(len(name))
    made = adapter.create(LAYERS[name](), "unet", "layer", TrainConfig(**SIZES, **options), 3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    (kind,) = [kind for kind in file_kinds() if kind.own & made.parts().keys()]
    return made, kind


def test_kinds_are_told_apart():
    kinds = file_kinds()
    assert len({kind.name for kind in kinds}) == len(kinds) > 5
    assert all(not one.own & other.own for one, other in combinations(kinds, 2))
    assert all(file_kind_named(kind.name) is kind for kind in kinds)


@pytest.mark.parametrize("kind", file_kinds(), ids=lambda kind: kind.name)
def test_facts_fit_each_other(kind):
    assert kind.own and not kind.own & kind.beside and not kind.refused & (kind.own | kind.beside)
    for some in (kind.internal, kind.factors, kind.main_parts, kind.kernel_marks, kind.whole_numbers):
        assert set(some) <= kind.own
    assert set(kind.needed({})) <= kind.own - kind.internal
    assert kind.spellings.keys() <= kind.own | kind.beside
    # an alpha that can be changed needs factors that make up for it, and a place
    assert kind.has_alpha == bool(kind.factors) and (not kind.has_alpha or ALPHA in kind.beside)
    assert not (kind.rotates and kind.adds) and (not kind.folds_alpha or kind.has_alpha)
    # no ending of a key may mean two parts
    endings = {f".{part}": part for part in kind.own | kind.beside}
    for part, spelled in kind.spellings.items():
        assert all(endings.setdefault(ending, part) == part for ending in spelled)


@pytest.mark.parametrize(("adapter", "name", "options"), CASES)
def test_parts_of_an_adapter_pass(adapter, name, options):
    made, kind = make(adapter, name, options)
    parts = made.parts()
    assert kind in adapter.file_kinds
    assert parts.keys() <= kind.own | kind.beside and set(kind.needed(parts)) <= parts.keys()
    assert kind.check(parts) in (layer_sides(made.layer), (None, None))
    kind.check_fits(parts, made.layer)
    normal = kind.normal(parts)
    assert normal.keys() == parts.keys() and all(torch.equal(normal[part], parts[part]) for part in parts)
    if adapter in ADAPTER_CLASSES.values():
        size = getattr(TrainConfig(**adapter.options_of(parts, made.layer)), adapter.size_option)
        assert kind.rank(parts) in (size, None)


@pytest.mark.parametrize(("adapter", "name", "options"), CASES)
def test_a_layer_of_another_size_is_refused(adapter, name, options):
    made, kind = make(adapter, name, options)
    other = nn.Linear(25, 37) if name == "linear" else nn.Conv2d(7, 11, 3)
    with pytest.raises(PartError, match="made for another base model|a layer of another size") as caught:
        kind.check_fits(made.parts(), other)
    assert caught.value.part in made.parts()


@pytest.mark.parametrize(("adapter", "name", "options"), CASES)
def test_singular_values_are_those_of_the_change(adapter, name, options):
    made, kind = make(adapter, name, options)
    parts = made.parts()
    values = kind.singular_values(parts)
    assert (values is not None) == kind.adds
    if values is None or DORA_SCALE in parts:
        return
    alpha, rank = kind.alpha(parts), kind.rank(parts)
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    expected = torch.linalg.svdvals(made.merged_delta().double().flatten(1))
    found = torch.zeros_like(expected)
    largest = (scale * values).sort(descending=True).values[: len(expected)]
    found[: len(largest)] = largest
    # ΔW is float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected[0].item())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("adapter", "name", "options"), CASES)
def test_what_a_layout_writes_is_read_as_the_same(adapter, name, options, layout):
    made, kind = make(adapter, name, options)
    fitted = kind.for_layer(made.parts(), layout, made.layer)
    names = {part: part for part in kind.own | kind.beside}
    names |= {ending.removeprefix("."): part for part, endings in kind.spellings.items() for ending in endings}
    read = {names[name]: tensor for name, tensor in kind.written(fitted, layout).items()}
    assert not read.keys() & kind.internal
    kind.check(read)
    again = adapter.create(made.layer, "unet", "layer", TrainConfig(**SIZES, **options), 0)
    again.load_parts(kind.in_layout(kind.normal(read), made.layer, None)[0])
    # float32, a product at most
    torch.testing.assert_close(again.merged_delta(), made.merged_delta(), rtol=1e-5, atol=1e-5)
