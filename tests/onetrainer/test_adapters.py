"""What our optimizers are told of OneTrainer's adapters and components, start values, and OFT in its ELEMENTS form."""

import io
import math
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from tests.onetrainer.inside import inside

import torch

import pytest

DOWN_UP = {"lora_down.weight": "LORA_DOWN", "lora_up.weight": "LORA_UP"}


def config_of(folder: Path | None = None, **values: Any) -> Any:
    from modules.util.config.TrainConfig import TrainConfig

    places = {}
    if folder is not None:
        places = {
            "workspace_dir": str(folder / "workspace"),
            "output_model_destination": str(folder / "out.safetensors"),
        }
    values = {"optimizer": {"optimizer": "SCALED_ADAMW_ADV"}, **places, **values}
    return TrainConfig.default_values().from_dict(values)


def trainer_of(folder: Path | None = None, **values: Any) -> Any:
    from modules.trainer.GenericTrainer import GenericTrainer

    trainer = GenericTrainer(config_of(folder, **values))
    trainer.start()
    return trainer


def infos_of(trainer: Any) -> dict[str, Any]:
    from scaled_optim.roles import parameter_info

    infos = [parameter_info(parameter) for parameter in trainer.model.parameters.parameters()]
    assert len({info.name for info in infos}) == len(infos)
    return {info.name: info for info in infos}


def roles_of(trainer: Any) -> dict[str, str]:
    return {name: str(getattr(info.role, "name", info.role)) for name, info in infos_of(trainer).items()}


LAYERS = ["first", "second", "attention.to_q", "attention.to_k", "attention.to_v", "conv"]


@inside
def test_lora_and_dora():
    for decompose in (False, True):
        trainer = trainer_of(lora_decompose=decompose)
        infos, roles = infos_of(trainer), roles_of(trainer)
        expected = {f"unet.{layer}.{name}": role for layer in LAYERS for name, role in DOWN_UP.items()}
        if decompose:
            expected |= {f"unet.{layer}.dora_scale": "DORA_SCALE" for layer in LAYERS}
        assert roles == expected
        for layer in LAYERS:
            down, up = (f"unet.{layer}.{name}" for name in DOWN_UP)
            assert (infos[down].pair, infos[up].pair) == (up, down)


@inside
def test_fused_qkv_is_one_adapter():
    roles = roles_of(trainer_of(fused_qkv=True))
    layers = ["qkv", "first", "second", "conv"]
    assert roles == {f"unet.{layer}.{name}": role for layer in layers for name, role in DOWN_UP.items()}


@inside
def test_loha():
    roles = roles_of(trainer_of(peft_type="LOHA"))
    sides = {"a": "LORA_UP", "b": "LORA_DOWN"}
    assert roles == {f"unet.{x}.hada_w{n}_{side}": role for x in LAYERS for n in (1, 2) for side, role in sides.items()}


@inside
def test_lokr():
    sides = {"a": "LORA_UP", "b": "LORA_DOWN"}
    for rank, parts in ((1, {"w1": True, "w2": True}), (2, {"w1": False, "w2": True}), (8, {"w1": False, "w2": False})):
        expected = {}
        for layer in LAYERS:
            for name, two in parts.items():
                found = {f"_{side}": role for side, role in sides.items()} if two else {"": "HIDDEN"}
                expected |= {f"unet.{layer}.lokr_{name}{end}": role for end, role in found.items()}
        assert roles_of(trainer_of(peft_type="LOKR", lora_rank=rank)) == expected


@inside
def test_oft_in_both_forms():
    block = 4
    scales = {
        (False, "ROW"): 1.0,
        (False, "ELEMENTS"): 1.0,
        (True, "ROW"): 0.5 / math.sqrt(block - 1),
        (True, "ELEMENTS"): 1 / math.sqrt(block * (block - 1) / 2),
    }
    for (scaled, mode), scale in scales.items():
        trainer = trainer_of(peft_type="OFT_2", oft_block_size=block, oft_scaled=scaled, oft_scale_mode=mode)
        infos = infos_of(trainer)
        assert roles_of(trainer) == {f"unet.{layer}.oft_R.weight": "OFT" for layer in LAYERS}
        assert all(info.forward_scale == pytest.approx(scale) for info in infos.values())


@inside
def test_a_component_as_a_whole():
    roles = roles_of(trainer_of(training_method="FINE_TUNE"))
    hidden = [f"unet.{layer}.weight" for layer in LAYERS if layer not in ("first", "second")]
    vectors = [f"unet.{layer}.bias" for layer in ("first", "conv", "second")]
    ends = {"unet.first.weight": "INPUT", "unet.second.weight": "OUTPUT"}
    assert roles == {**dict.fromkeys(hidden, "HIDDEN"), **dict.fromkeys(vectors, "VECTOR"), **ends}


@inside
def test_embeddings():
    from modules.modelSetup.PairEmbeddingSetup import PairEmbeddingSetup
    from modules.util import create
    from modules.util.NamedParameterGroup import NamedParameterGroup, NamedParameterGroupCollection
    from scaled_optim.roles import parameter_info

    groups = NamedParameterGroupCollection()
    vectors = {name: torch.nn.Parameter(torch.randn(2, 8)) for name in ("one", "two")}
    PairEmbeddingSetup().add_embeddings(vectors, groups, 0.1)
    prior = torch.nn.Parameter(torch.randn(2, 8))
    groups.add_group(NamedParameterGroup("prior_embeddings/three", [prior], 0.1))
    create.create_optimizer(groups, None, config_of())
    infos = [parameter_info(vector) for vector in (*vectors.values(), prior)]
    assert [info.name for info in infos] == ["embeddings/one.0", "embeddings/two.0", "prior_embeddings/three.0"]
    assert {str(getattr(info.role, "name", info.role)) for info in infos} == {"INPUT"}


def columns_error(weight: torch.Tensor) -> float:
    columns = weight.detach().flatten(1).double()
    return float((columns.T @ columns - torch.eye(columns.shape[1])).abs().max())


@inside
def test_start_values():
    plain = trainer_of().model.adapter
    normal = trainer_of(lora_init="NORMAL").model.adapter
    orthonormal = trainer_of(lora_init="ORTHONORMAL").model.adapter
    for name in LAYERS:
        assert not plain.lora_modules[name].lora_up.weight.any()
        assert not normal.lora_modules[name].lora_up.weight.any()
        down = normal.lora_modules[name].lora_down.weight
        assert not torch.equal(down, plain.lora_modules[name].lora_down.weight)
        up = orthonormal.lora_modules[name].lora_up.weight
        assert columns_error(up) < 1e-6 and not orthonormal.lora_modules[name].lora_down.weight.any()
        # a DoRA has it, too
    dora = trainer_of(lora_init="ORTHONORMAL", lora_decompose=True).model.adapter
    assert columns_error(dora.lora_modules["first"].lora_up.weight) < 1e-6


@inside
def test_more_ranks_than_outputs():
    adapter = trainer_of(lora_init="ORTHONORMAL", lora_rank=12, lora_alpha=6.0).model.adapter.lora_modules["first"]
    assert adapter.rank == 8 and tuple(adapter.lora_up.weight.shape) == (8, 8)
    # the factor of what it adds is that of 6/12
    assert float(adapter.alpha) / adapter.rank == pytest.approx(0.5)


@inside
def test_words_that_are_none():
    for key, known in (("lora_init", "KAIMING, NORMAL, ORTHONORMAL"), ("oft_scale_mode", "ROW, ELEMENTS")):
        with pytest.raises(ValueError, match=f"^{key}: found WORD, expected one of {known}"):
            trainer_of(**{key: "WORD"})


OFT = {"peft_type": "OFT_2", "oft_scaled": True, "oft_scale_mode": "ELEMENTS"}


def test_blocks_that_hold_no_numbers_have_a_scale():
    from scaled_onetrainer.rotations import row_scale

    assert row_scale(1) == 1.0 and row_scale(2) == 0.5 and row_scale(17) == 0.125


@inside
def test_what_has_no_effect_is_said_once():
    from scaled_onetrainer.hooks import adapters

    adapters._TOLD.clear()
    for values, word in (
        ({"peft_type": "OFT_2", "oft_scale_mode": "ELEMENTS"}, "oft_scaled is off"),
        ({"peft_type": "LOHA", "lora_init": "ORTHONORMAL"}, "has no effect on LOHA"),
    ):
        with redirect_stdout(io.StringIO()) as said:
            for _ in range(2):
                trainer_of(**values)
        assert said.getvalue().count(word) == 1
    with redirect_stdout(io.StringIO()) as said:
        trainer_of(peft_type="OFT_2", oft_scaled=True, oft_scale_mode="ELEMENTS")
        trainer_of(lora_init="ORTHONORMAL")
    assert "effect" not in said.getvalue()


@inside
def test_elements_file_and_backup(tmp_path):
    from safetensors.torch import load_file

    trainer = trainer_of(tmp_path, **OFT)
    trainer.train()
    trainer.end()
    file = load_file(tmp_path / "out.safetensors")
    backup = load_file(tmp_path / "workspace" / "backup" / "lora" / "lora.safetensors")
    assert set(file) == {f"unet.{layer}.oft_R.weight" for layer in LAYERS}
    assert set(backup) - set(file) == {f"unet.{layer}.oft_R.scaled_oft_elements" for layer in LAYERS}
    for key, effective in file.items():
        trained = backup[key]
        assert trained.any() and torch.equal(effective, trained * (1 / math.sqrt(6)))
        name = key.removeprefix("unet.").removesuffix(".oft_R.weight")
        assert torch.equal(trained, trainer.model.adapter.lora_modules[name].oft_R.weight)


@inside
def test_elements_file_is_what_is_trained(tmp_path):
    """OneTrainer's plain form, given the file, gives the same output; so does our form, given file or backup."""
    from safetensors.torch import load_file

    trainer = trainer_of(tmp_path, **OFT)
    trainer.train()
    trainer.end()
    x = torch.randn(5, 8)
    expected = trainer.model.unet(x)
    file = load_file(tmp_path / "out.safetensors")
    backup = load_file(tmp_path / "workspace" / "backup" / "lora" / "lora.safetensors")
    untrained = trainer_of(**OFT)
    assert not torch.allclose(untrained.model.unet(x), expected, atol=1e-4)
    for state, settings in ((file, {"peft_type": "OFT_2"}), (file, OFT), (backup, OFT)):
        other = trainer_of(**settings)
        other.model.adapter.load_state_dict(state)
        # one rounding of each number lies between file and backup
        assert torch.allclose(other.model.unet(x), expected, atol=1e-6)


@inside
def test_elements_reads_a_file_of_the_row_form():
    row = trainer_of(peft_type="OFT_2", oft_scaled=True)
    row.train()
    x = torch.randn(5, 8)
    state = row.model.adapter.state_dict()
    assert "unet.first.oft_R.scaled_oft" in state
    elements = trainer_of(**OFT)
    elements.model.adapter.load_state_dict(state)
    assert torch.allclose(elements.model.unet(x), row.model.unet(x), atol=1e-6)


@inside
def test_elements_changes_nothing_where_it_is_off():
    """The same start, the same gradients of effective numbers: the factor of the chain rule alone."""
    x, target = torch.randn(16, 8), torch.randn(16, 8)
    gradients = {}
    for mode in ("ROW", "ELEMENTS"):
        trainer = trainer_of(peft_type="OFT_2", oft_scaled=True, oft_scale_mode=mode)
        (trainer.model.unet(x) - target).square().mean().backward()
        gradients[mode] = trainer.model.adapter.lora_modules["first"].oft_R.weight.grad
    ratio = gradients["ELEMENTS"] / gradients["ROW"]
    assert torch.allclose(ratio, torch.full_like(ratio, (1 / math.sqrt(6)) / (0.5 / math.sqrt(3))), rtol=1e-3)
