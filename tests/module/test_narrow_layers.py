"""Layers of few inputs or outputs, such as the first and last of Stable Diffusion: every kind, start and optimizer."""

import math

from modules.model.QuantizedLinear import QuantizedLinear
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.save_adapter import save_adapter
from modules.module.AdapterSet import AdapterSet, usual_options
from modules.module.dense_weight import weight_shape
from modules.module.LoRAModule import ALPHA, DOWN, UP, LoRAModule, without_extra_ranks
from modules.trainer.optimizers import create_optimizer
from modules.util.AdapterNaming import AdapterNaming
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.LayerFilter import LayerFilter
from modules.util.UserError import UserError
from scaled_optim.features.stiefel import orthonormality_error

import torch
from torch import Tensor, nn

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

# name -> (layer, inputs): the sizes of Stable Diffusion's first and last layer, and of a tiny model's
LAYERS = {
    "first": (nn.Conv2d, 4, 320),
    "last": (nn.Conv2d, 320, 4),
    "small_conv": (nn.Conv2d, 8, 8),
    "linear_in": (nn.Linear, 4, 320),
    "linear_out": (nn.Linear, 320, 4),
    "small": (nn.Linear, 8, 8),
    "linear_8": (nn.Linear, 320, 8),
}
LORA, OFT, LOKR = {"peft_type": "LORA"}, {"peft_type": "OFT_2"}, {"peft_type": "LOKR"}
# options that depend on the size stand as SIZE
SIZE = object()
KINDS = {
    "LoRA": LORA,
    "DoRA": LORA | {"lora_decompose": True},
    "DoRA on outputs": LORA | {"lora_decompose": True, "lora_decompose_output_axis": True},
    "LoHa": {"peft_type": "LOHA"},
    "LoKr": LOKR | {"lokr_dim": SIZE},
    "LoKr both": LOKR | {"lokr_dim": SIZE, "lokr_decompose_both": True, "lokr_use_tucker": True},
    "LoKr factor": LOKR | {"lokr_dim": 2, "lokr_decompose_factor": SIZE, "lokr_weight_decompose": True},
    "OFT": OFT | {"oft_block_size": SIZE},
    "OFT on outputs": OFT | {"oft_block_size": SIZE, "oft_side": "OUTPUT", "oft_scaled": True},
    "OFT shared": OFT | {"oft_block_size": SIZE, "oft_block_share": True},
    "DoRA-OFT": OFT | {"oft_block_size": SIZE, "lora_decompose": True},
}
OPTIMIZERS = {
    "AdamW": {"optimizer": "ADAMW"},
    "scaled": {"optimizer": "ADAMW_ADV", "scaled_optm": True},
    "Muon": {"optimizer": "MUON_ADV", "scaled_optm": True},
    "RITE": {"optimizer": "LORA_RITE"},
    "RITE scaled": {"optimizer": "LORA_RITE", "scaled_optm": True},
    "Stiefel": {"optimizer": "STIEFEL_LORA"},
}
STARTS = ("KAIMING", "NORMAL", "ORTHONORMAL")
FORMATS = (ModelFormat.KOHYA_LORA, ModelFormat.INTERNAL)
NAMING = AdapterNaming.build(
    {
        ModelFormat.KOHYA_LORA: {("unet", name): f"lora_unet_{name}" for name in LAYERS},
        ModelFormat.INTERNAL: {("unet", name): f"unet.{name}" for name in LAYERS},
    },
    {},
)


class Narrow(nn.Module):
    """One layer of each kind and size, side by side."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, (kind, inputs, outputs) in LAYERS.items():
            self.add_module(name, kind(inputs, outputs, *([3] if kind is nn.Conv2d else [])))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """A loss that moves every layer."""
        return sum((self.get_submodule(name)(x) - 1).square().mean() for name, x in inputs.items())


def narrow_inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {name: (2, size, 4, 3) if kind is nn.Conv2d else (6, size) for name, (kind, size, _) in LAYERS.items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def config_of(kind: str, size: int, **changes) -> TrainConfig:
    options = {key: size if value is SIZE else value for key, value in KINDS[kind].items()}
    return TrainConfig.from_dict({"lora_rank": size, "lora_alpha": size / 2} | options | changes)


def expected_rank(layer: nn.Module, config: TrainConfig) -> int:
    """What a LoRA gets: less than is asked for only where orthonormal columns need it."""
    outputs = weight_shape(layer)[0]
    return min(config.lora_rank, outputs) if config.lora_init == "ORTHONORMAL" else config.lora_rank


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 64),
    kind=st.sampled_from(list(KINDS)),
    start=st.sampled_from(STARTS),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
)
@example(64, "LoRA", "ORTHONORMAL", "Stiefel")
@example(64, "DoRA", "ORTHONORMAL", "Stiefel")
@example(64, "LoRA", "KAIMING", "RITE")
@example(5, "DoRA on outputs", "ORTHONORMAL", "RITE scaled")
@example(64, "LoRA", "NORMAL", "Muon")
def test_every_size_trains_and_comes_back_from_its_file(tmp_path_factory, size, kind, start, optimizer):
    size = max(2, size) if "OFT" in kind else size
    # which has no pairs to keep orthonormal in other kinds
    start = "ORTHONORMAL" if optimizer == "Stiefel" else start
    config = config_of(kind, size, lora_init=start)
    root, inputs = Narrow(), narrow_inputs()
    adapters = AdapterSet("unet", root, config, seed=2)
    plain = root(inputs)
    adapters.hook()
    assert torch.equal(root(inputs), plain)
    groups = [{"params": adapters.parameters(), "lr": 1e-3, "name": "unet"}]
    made = create_optimizer(TrainOptimizerConfig.from_dict(OPTIMIZERS[optimizer]), groups)
    for _ in range(3):
        loss = root(inputs)
        loss.backward()
        made.step()
        made.zero_grad()
    assert root(inputs) < plain
    for name, adapter in adapters.adapters.items():
        delta = adapter.merged_delta()
        assert delta.isfinite().all() and delta.any(), name
        if isinstance(adapter, LoRAModule):
            assert adapter.rank == len(adapter.down) == expected_rank(adapter.layer, config)
            # two roundings to float32: of alpha for fewer ranks
            assert adapter.scale == pytest.approx(0.5, rel=2e-7)
            if optimizer == "Stiefel":
                assert orthonormality_error(adapter.up) < 1e-5
    check_files(tmp_path_factory.mktemp("narrow"), root, adapters)


def check_files(folder, root: nn.Module, adapters: AdapterSet) -> None:
    """Written and read it is the same adapter."""
    for model_format in FORMATS:
        path = folder / f"{model_format}.safetensors"
        save_adapter(path, {"unet": adapters}, model_format, NAMING, AdapterDescription())
        layers = read_adapter(path).fit(NAMING, {"unet": root})["unet"]
        again = AdapterSet.from_parts("unet", root, layers)
        for name, adapter in adapters.adapters.items():
            expected = adapter.merged_delta()
            # float32: scaled rotations are written as effective weights, magnitudes of rotations as another number
            assert (again.adapters[name].merged_delta() - expected).abs().max() <= 1e-6 * (1 + expected.abs().max())


# layers of a single input or output, and wide ones with few outputs that are quantized
EXTREME = {
    "one output": lambda: nn.Linear(96, 1),
    "one input": lambda: nn.Linear(1, 96),
    "one output, kernel": lambda: nn.Conv2d(16, 1, 3),
    "one input, kernel": lambda: nn.Conv2d(1, 16, 3),
    "quantized": lambda: QuantizedLinear(nn.Linear(1024, 8), DataType.INT_8),
    "4 bits": lambda: QuantizedLinear(nn.Linear(1024, 4), DataType.NFLOAT_4),
}


@pytest.mark.parametrize("start", ["KAIMING", "ORTHONORMAL"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", EXTREME)
def test_layers_of_one_channel_and_quantized_ones_come_back_from_their_file(tmp_path, layer, kind, start):
    """Beside a usual one: the file of a run holds one kind."""
    torch.manual_seed(0)
    # under names that the naming knows
    root = nn.ModuleDict({"first": EXTREME[layer](), "small": nn.Linear(16, 16)})
    adapters = AdapterSet("unet", root, config_of(kind, 12, lora_init=start))
    left_out = "OFT" in kind and layer.startswith("one output" if "outputs" in kind else "one input")
    assert list(adapters.adapters) == (["small"] if left_out else ["first", "small"])
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    check_files(tmp_path, root, adapters)


def test_fewer_ranks_are_told_once_with_the_first_layer():
    config = config_of("LoRA", 32, lora_init="ORTHONORMAL")
    assert AdapterSet("unet", Narrow(), config).notes == [
        "unet.last: rank 32 → 4, its outputs, as lora_init ORTHONORMAL allows no more; 4 more layers likewise",
        "unet.linear_in: rank 32 is more than its smaller side 4",
    ]
    assert not AdapterSet("unet", Narrow(), config_of("LoRA", 4, lora_init="ORTHONORMAL")).notes


@pytest.mark.parametrize("start", ["KAIMING", "NORMAL"])
def test_where_a_large_rank_works_it_is_kept(start):
    adapters = AdapterSet("unet", Narrow(), config_of("LoRA", 32, lora_init=start))
    assert {adapter.rank for adapter in adapters.adapters.values()} == {32}
    (note,) = adapters.notes
    assert note == "unet.last: rank 32 is more than its smaller side 4; 5 more layers likewise"


def test_a_layer_that_cannot_be_rotated_is_left_out():
    root = nn.ModuleDict({"deep": nn.Conv2d(8, 8, 3, groups=8), "flat": nn.Linear(8, 1), "usual": nn.Linear(8, 8)})
    adapters = AdapterSet("unet", root, config_of("OFT", 4))
    assert list(adapters.adapters) == ["flat", "usual"]
    assert adapters.notes == [
        "oft_side: unet.deep has one of inputs per group, which can't be rotated; it is left out",
    ]
    outputs = AdapterSet("unet", root, config_of("OFT on outputs", 4))
    assert list(outputs.adapters) == ["usual"] and outputs.notes[0].endswith("it is left out; 1 more layer likewise")
    # what is resumed has the same layers
    again = AdapterSet("unet", root, config_of("OFT", 4))
    again.load_state_dict(adapters.state_dict())
    with pytest.raises(UserError, match=r"unet\.deep has one of inputs per group.*Choose the other oft_side"):
        AdapterSet("unet", root, config_of("OFT", 4), LayerFilter(("deep",)))


@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "DoRA on outputs"])
def test_a_run_with_fewer_ranks_resumes(kind):
    config = config_of(kind, 16, lora_init="ORTHONORMAL")
    first, second = (AdapterSet("unet", Narrow(), config, seed=seed) for seed in (1, 2))
    second.load_state_dict(first.state_dict())
    for name, adapter in first.adapters.items():
        assert torch.equal(second.adapters[name].up, adapter.up)
        assert second.adapters[name].scale == adapter.scale


def test_a_file_keeps_its_ranks_whatever_the_start_values_are():
    """Its numbers are not drawn, so that orthonormal columns limit nothing."""
    root = Narrow()
    wide = AdapterSet("unet", root, config_of("LoRA", 32))
    mixed = AdapterSet("unet", root, config_of("LoRA", 32, lora_init="ORTHONORMAL"))
    for source in (wide, mixed):
        again = AdapterSet("unet", root, config_of("LoRA", 5, lora_init="ORTHONORMAL"), start=source.layers())
        assert not [note for note in again.notes if "ORTHONORMAL" in note]
        for name, adapter in source.adapters.items():
            assert torch.equal(again.adapters[name].down, adapter.down)


def test_layers_that_a_file_lacks_get_the_size_that_most_of_its_layers_have():
    root = Narrow()
    mixed = AdapterSet("unet", root, config_of("LoRA", 32, lora_init="ORTHONORMAL"))
    start = {name: mixed.layers()[name] for name in ("last", "first", "linear_in", "small")}
    again = AdapterSet("unet", root, config_of("LoRA", 7), start=start)
    assert [again.adapters[name].rank for name in ("last", "small", "linear_8", "linear_out")] == [4, 8, 32, 32]
    assert usual_options([{"lora_rank": 4}, {"lora_rank": 8}]) == {"lora_rank": 4}


@pytest.mark.parametrize("name", ["last", "linear_8", "first", "small"])
@pytest.mark.parametrize("alpha", [None, 3.0])
def test_extra_ranks_go_without_changing_anything(name, alpha):
    root = Narrow()
    adapters = AdapterSet("unet", root, config_of("LoRA", 24), LayerFilter.exactly([name]))
    generator = torch.Generator().manual_seed(1)
    parts = {key: torch.randn(part.shape, generator=generator) for key, part in adapters.layers()[name].items()}
    parts = {key: part for key, part in parts.items() if key != ALPHA}
    parts |= {} if alpha is None else {ALPHA: torch.tensor(alpha)}
    before = AdapterSet.from_parts("unet", root, {name: parts}).adapters[name]
    found = without_extra_ranks(parts)
    after = AdapterSet.from_parts("unet", root, {name: found}).adapters[name]
    assert after.rank == min(24, weight_shape(after.layer)[0])
    # sums of 24 products in float32, whose factors were rounded once
    expected = before.merged_delta()
    assert (after.merged_delta() - expected).abs().max() < 1e-6 * expected.abs().max()
    assert after.scale == pytest.approx(before.scale, rel=2e-7)
    if found is parts:
        assert weight_shape(after.layer)[0] >= 24
    else:
        assert orthonormality_error(found[UP]) < 1e-6 and len(found[DOWN]) == after.rank
    assert math.isfinite(after.scale) and without_extra_ranks(found) is found


def test_no_layer_is_nameless():
    """A component that is itself a layer, and layers of files that belong to no component."""
    adapters = AdapterSet("text_encoder", nn.Linear(8, 4), config_of("LoRA", 6))
    assert adapters.notes == ["text_encoder: rank 6 is more than its smaller side 4"]
    assert LoRAModule(nn.Linear(8, 4), "", "lora_unet_x", rank=2, alpha=1).full_name == "lora_unet_x"
    with pytest.raises(AssertionError):
        LoRAModule(nn.Linear(8, 4), "", "", rank=2, alpha=1)
