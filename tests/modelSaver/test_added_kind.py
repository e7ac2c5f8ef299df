"""A kind of adapter that is added here: its one module and file kind below, and one line of the registry.

It goes the way of every kind, from a layer over training and files of each format to what the tools make of them.
"""

import ast
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from modules.model.unet_keys import unet_adapter_naming
from modules.modelSaver.adapter_kinds import AdapterKind
from modules.modelSaver.adapter_layout import LAYOUTS
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.adapter_output import check_adapter_output, planned_kind
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.convert import as_diff, as_lora, describe_file, with_alpha
from modules.modelSaver.effective_rank import effective_rank, ranks_of_file
from modules.modelSaver.format_rules import holds
from modules.modelSaver.fused_layers import join_layers, split_layer
from modules.modelSaver.inspect_adapter import info_text, inspect_adapter
from modules.modelSaver.portable_copy import save_portable_copy
from modules.modelSaver.save_adapter import save_adapter, save_parts
from modules.module import kinds
from modules.module.AdapterModule import AdaptedLayer
from modules.module.AdapterSet import AdapterSet
from modules.module.DeltaModule import DeltaModule
from modules.module.dense_weight import weight_shape
from modules.module.factored_svd import singular_values
from modules.module.FileKind import ALPHA, FileKind, PartError, Parts, factor
from modules.module.part_checks import check_names, check_rank, fitted, number, rank_of
from modules.tool.adapter_tool import Wishes, convert
from modules.util.atomic_file import write_safetensors
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.enum.PeftType import PeftType
from modules.util.enum.PortableCopy import PortableCopy
from modules.util.keyed_random import layer_generator
from modules.util.LayerFilter import LayerFilter
from modules.util.ReferenceModel import ReferenceModel
from modules.util.UserError import UserError
from tests.adapters import disturb

import torch
from torch import Tensor

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

LEFT, MIDDLE, RIGHT = "diag_left", "diag_middle", "diag_right"
FACTORS = (LEFT, MIDDLE, RIGHT)


class DiagonalFileKind(FileKind):
    name = "diagonal"
    own = frozenset(FACTORS)
    beside = frozenset({ALPHA})
    has_alpha = True
    factors = FACTORS
    main_parts = (RIGHT,)
    adds = True
    joins = True

    def rank(self, parts: Parts) -> int | None:
        return len(parts[MIDDLE])

    def check(self, parts: Parts) -> tuple[int, int]:
        left, right, rank = factor(parts, LEFT), factor(parts, RIGHT), len(parts[MIDDLE])
        if left.shape[1] != rank or len(right) != rank:
            raise PartError(MIDDLE, f"has {rank} numbers, expected the ranks of both matrices.")
        return len(left), right[0].numel()

    def row_parts(self, parts: Parts) -> list[str]:
        return [LEFT]

    def rank_factors(self, parts: Parts) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        return (LEFT,), (MIDDLE, RIGHT)

    def singular_values(self, parts: Parts) -> Tensor | None:
        return singular_values(parts[MIDDLE].double()[:, None] * parts[RIGHT].double(), parts[LEFT])

    def up_factor(self, parts: Parts) -> Tensor | None:
        return parts[LEFT]


class DiagonalModule(DeltaModule):
    """W' = W + (alpha/rank)·left·diag(middle)·right, left `[o, r]`, middle `[r]`, right `[r, i·kh·kw]`."""

    file_kinds = (DiagonalFileKind(),)
    part_names = {LEFT: "left", MIDDLE: "middle", RIGHT: "right", ALPHA: "alpha"}
    strength_parts = (MIDDLE,)

    def __init__(self, *place: Any, rank: int, alpha: float, dropout: float, dtype: torch.dtype, seed: int) -> None:
        super().__init__(*place, dropout)
        out, *inner = weight_shape(self.layer)
        width, generator = torch.Size(inner).numel(), layer_generator(seed, self.full_name)
        self.rank = rank
        self.add(LEFT, "left", torch.randn(out, rank, generator=generator).to(dtype), ParameterRole.LORA_UP)
        self.add(MIDDLE, "middle", torch.zeros(rank, dtype=dtype), ParameterRole.VECTOR)
        right = torch.randn(rank, width, generator=generator) / width**0.5
        self.add(RIGHT, "right", right.to(dtype), ParameterRole.LORA_DOWN)
        self.register_buffer(ALPHA, torch.tensor(float(alpha)))

    @classmethod
    def own_arguments(cls, layer: AdaptedLayer, config: TrainConfig, seed: int) -> dict[str, Any]:
        return {"rank": config.lora_rank, "alpha": config.lora_alpha, "seed": seed}

    @classmethod
    def recognizes(cls, names: Collection[str]) -> bool:
        return MIDDLE in names

    @classmethod
    def options_of(cls, parts: Mapping[str, Tensor], layer: AdaptedLayer) -> dict[str, Any]:
        rank = rank_of(parts, MIDDLE)
        return {**CHOICE, "lora_rank": rank, "lora_alpha": number(parts, ALPHA, rank)}

    def factors(self) -> tuple[Tensor, ...]:
        return self.left, self.middle, self.right

    def build(self, *factors: Tensor) -> Tensor:
        left, middle, right = (tensor.float() for tensor in factors)
        return (torch.mm(left * (self.alpha / self.rank * middle), right)).view(weight_shape(self.layer))

    @torch.no_grad()
    def load_parts(self, parts: Mapping[str, Tensor]) -> None:
        check_names(self, parts, FACTORS, self.part_names, "diagonal")
        check_rank(self, parts[MIDDLE], self.rank, "lora_rank")
        for part in FACTORS:
            target = getattr(self, self.part_names[part])
            target.copy_(fitted(self, parts[part], target, part))
        self.alpha.fill_(number(parts, ALPHA, self.rank))


# `PeftType` has OneTrainer's values, so the kind takes a free place beside LoHa, which has no decomposition here
KEY = (PeftType.LOHA, True)
CHOICE = {"peft_type": PeftType.LOHA, "lora_decompose": True}
OPTIONS = CHOICE | {"lora_rank": 3, "lora_alpha": 5.0}
KIND = AdapterKind("diagonal")
LAYERS = LayerFilter(("down_blocks.0.attentions.0", "down_blocks.1.resnets.0"))  # linear, 3 x 3 and 1 x 1 convolutions
READ = [model_format for model_format in LAYOUTS if model_format != ModelFormat.DIFFUSERS_LORA]


@pytest.fixture
def added(monkeypatch):
    """The one line."""
    monkeypatch.setitem(kinds.ADAPTER_CLASSES, KEY, DiagonalModule)


@pytest.fixture(scope="module")
def base(make_pipeline):
    pipeline = make_pipeline()
    naming = unet_adapter_naming(pipeline.unet, {"text_encoder": pipeline.text_encoder})
    return ReferenceModel("tiny", {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}, naming)


@pytest.fixture
def trained(added, base):
    """component -> adapters with random weights."""
    sets = {
        "unet": AdapterSet("unet", base.components["unet"], TrainConfig(**OPTIONS), LAYERS),
        "text_encoder": AdapterSet("text_encoder", base.components["text_encoder"], TrainConfig(**OPTIONS)),
    }
    return {component: disturb(adapters, 2) for component, adapters in sets.items()}


def written(path: Path, sets: Mapping[str, AdapterSet], model_format: ModelFormat, base: ReferenceModel) -> Path:
    if model_format == ModelFormat.ORIGINAL_LORA:  # has no names for text encoders
        sets = {"unet": sets["unet"]}
    save_adapter(path, sets, model_format, base.naming, AdapterDescription(title="diagonal"))
    return path


def check_deltas(
    layers: Mapping[str, Mapping[str, Parts]], sets: Mapping[str, AdapterSet], base: ReferenceModel
) -> None:
    """The layers of a file change the base as the trained adapters do."""
    for component, own in layers.items():
        loaded = AdapterSet.from_parts(component, base.components[component], own).adapters
        assert loaded.keys() == sets[component].adapters.keys()
        for layer, adapter in sets[component].adapters.items():
            expected = adapter.merged_delta()
            assert expected.norm() > 0.01
            # float32, a few roundings
            assert (loaded[layer].merged_delta() - expected).norm() < 1e-5 * expected.norm()


def test_trains_and_resumes(added, base):
    unet = base.components["unet"]
    adapters = AdapterSet("unet", unet, TrainConfig(**OPTIONS), LAYERS)
    assert adapters.adapter_class is DiagonalModule
    latents, text = torch.randn(2, 4, 8, 8), torch.randn(2, 8, 32)
    predict = lambda: unet(latents, torch.tensor([10, 700]), text).sample  # noqa: E731
    with torch.no_grad():
        plain = predict()
    adapters.hook()
    try:
        assert torch.allclose(predict(), plain)  # a fresh one changes nothing
        optimizer = torch.optim.AdamW(adapters.parameters(), lr=0.01, weight_decay=0.0)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = (predict() - plain - 0.1).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[2] < losses[0]
    finally:
        adapters.unhook()
    fresh = AdapterSet("unet", unet, TrainConfig(**OPTIONS), LAYERS, seed=1)
    fresh.load_state_dict(adapters.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(fresh.parameters(), adapters.parameters(), strict=True))


@pytest.mark.parametrize("model_format", READ)
def test_written_and_read(trained, base, tmp_path, model_format):
    path = written(tmp_path / "adapter.safetensors", trained, model_format, base)
    file = read_adapter(path)
    assert file.kind == KIND and str(file.kind) == "diagonal" and not file.kind.needs_weights
    check_deltas(file.fit(base.naming, base.components), trained, base)
    assert any(key.endswith(f".{MIDDLE}") for key in load_file(path))
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
    assert metadata["adapter_kind"] == "diagonal"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("3", "5")
    # a name of LyCORIS or kohya would send their programs to code that can't read it
    assert "ss_network_module" not in metadata and "ss_network_args" not in metadata


def test_diffusers_is_refused_as_the_kind_says(trained, base, tmp_path):
    path = tmp_path / "adapter.safetensors"
    assert not holds(ModelFormat.DIFFUSERS_LORA, KIND)
    with pytest.raises(UserError, match="cannot hold diagonal; diffusers loads only LoRA and DoRA on outputs. Choose"):
        written(path, trained, ModelFormat.DIFFUSERS_LORA, base)
    assert not path.exists()


def test_a_run_says_who_reads_it(added, base):
    config, said = TrainConfig(**OPTIONS, output_model_format=ModelFormat.LEGACY_LORA), []
    assert planned_kind(config) == KIND
    check_adapter_output(config, base.naming, said.append)
    assert said == [
        "diagonal: stock ComfyUI cannot apply it; it does not know this kind. Set portable_copy.",
        "diagonal: OneTrainer has no such adapters, so it cannot go on from LEGACY_LORA.",
    ]


def test_converted(trained, base, tmp_path):
    source = written(tmp_path / "kohya.safetensors", trained, ModelFormat.KOHYA_LORA, base)
    file = read_adapter(source)
    layers = file.fit(base.naming, base.components)
    for model_format in (ModelFormat.COMFY_LORA, ModelFormat.INTERNAL):
        path = tmp_path / f"{model_format}.safetensors"
        save_parts(path, layers, model_format, base.naming, describe_file(file, base))
        check_deltas(read_adapter(path).fit(base.naming, base.components), trained, base)
    for changed in (as_diff(layers, base), with_alpha(layers, 2.0), as_lora(layers, base, 3)[0]):
        check_deltas(changed, trained, base)
    convert(source, tmp_path / "alpha.safetensors", Wishes(alpha=2.0), lambda text: None)
    rebased = read_adapter(tmp_path / "alpha.safetensors")
    assert {parts[ALPHA].item() for parts in rebased.layers.values()} == {2.0}
    check_deltas(rebased.fit(base.naming, base.components), trained, base)
    note = save_portable_copy(
        tmp_path / "copy.safetensors", trained, PortableCopy.LORA, 3, ModelFormat.KOHYA_LORA, base.naming,
        AdapterDescription(),
    )  # fmt: skip
    assert "rank 3" in note
    check_deltas(read_adapter(tmp_path / "copy.safetensors").fit(base.naming, base.components), trained, base)


def test_inspected(trained, base, tmp_path):
    file = read_adapter(written(tmp_path / "adapter.safetensors", trained, ModelFormat.KOHYA_LORA, base))
    facts = {row.name: row for row in inspect_adapter(file)}
    ranks = ranks_of_file(file)
    assert ranks.kind == "diagonal" and ranks.layers.keys() == facts.keys()
    for component, adapters in trained.items():
        for layer, adapter in adapters.adapters.items():
            name = base.naming.write[ModelFormat.KOHYA_LORA][component, layer]
            values = torch.linalg.svdvals(adapter.merged_delta().double().flatten(1))
            row, rank = facts[name], ranks.layers[name]
            assert (row.rank, row.alpha, rank.rank) == (3, 5.0, 3)
            # ΔW is float32
            assert row.norm == pytest.approx(values.norm().item(), rel=1e-5)
            assert row.effective_rank == pytest.approx(effective_rank(values), rel=1e-3)
            assert rank.product == pytest.approx(row.effective_rank) and 1 < rank.up <= 3
    assert "diagonal, " in info_text(file, list(facts.values()))


def test_joined_and_taken_apart(added):
    generator, rows = torch.Generator().manual_seed(3), (8, 8, 16)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    pieces = [{LEFT: draw(count, 2), MIDDLE: draw(2), RIGHT: draw(2, 12), ALPHA: torch.tensor(2.0)} for count in rows]
    fused = join_layers(pieces, rows)
    delta = fused[ALPHA] / 6 * (fused[LEFT] * fused[MIDDLE]) @ fused[RIGHT]
    expected = torch.cat([(piece[LEFT] * piece[MIDDLE]) @ piece[RIGHT] for piece in pieces])
    assert torch.allclose(delta, expected, atol=1e-5)
    for piece, own in zip(split_layer(fused, rows), pieces, strict=True):
        assert all(torch.equal(piece[part], own[part]) for part in FACTORS)


def test_wrong_parts_are_named(trained, base, tmp_path):
    path = written(tmp_path / "adapter.safetensors", trained, ModelFormat.KOHYA_LORA, base)
    tensors, name = load_file(path), "lora_unet_down_blocks_1_resnets_0_conv1"

    def refused(changes: dict[str, Tensor | None]) -> str:
        wrong = {**tensors, **{f"{name}.{part}": tensor for part, tensor in changes.items()}}
        write_safetensors(path, {key: tensor for key, tensor in wrong.items() if tensor is not None}, {})
        with pytest.raises(UserError) as caught:
            read_adapter(path).fit(base.naming, base.components)
        return str(caught.value)

    assert f"{name}.{MIDDLE} has 2 numbers, expected the ranks" in refused({MIDDLE: torch.ones(2)})
    assert f"stands without {RIGHT}" in refused({RIGHT: None})
    assert f"{name}.{RIGHT} makes a 64 x 5 matrix, expected 64 x 288" in refused({RIGHT: torch.ones(3, 5)})
    assert "belongs to diagonal, but the layer has parts of LoRA" in refused({"lora_up.weight": torch.ones(2, 2)})


def test_it_is_the_line_that_does_it(trained, base, tmp_path, monkeypatch):
    path = written(tmp_path / "adapter.safetensors", trained, ModelFormat.KOHYA_LORA, base)
    monkeypatch.delitem(kinds.ADAPTER_CLASSES, KEY)
    with pytest.raises(UserError, match="is no part of an adapter"):
        read_adapter(path)


def test_savers_name_no_kind():
    """No string in the savers is the name of a kind or of one of its parts: these come from the kinds."""
    savers = sorted((Path(__file__).resolve().parents[2] / "modules" / "modelSaver").glob("*.py"))
    assert len(savers) > 15
    words = {word for kind in kinds.file_kinds() for word in (kind.name, *kind.own)}
    for path in savers:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        found = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        assert not found & words, f"{path.name} names {sorted(found & words)}"
