"""Continuing any adapter file, and what a run checks and writes beside its adapter."""

from pathlib import Path

from modules.model.BaseModel import BaseModel, family_of
from modules.modelSaver.adapter_output import check_adapter_output, save_adapters
from modules.modelSaver.AdapterFile import read_adapter
from modules.module.AdapterSet import AdapterSet
from modules.module.kinds import ADAPTER_CLASSES, adapter_class_of
from modules.trainer.adapters import make_adapters
from modules.util.atomic_file import write_safetensors
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError

import torch

import pytest
from safetensors.torch import load_file

OFT = {"peft_type": "OFT_2", "oft_block_size": 6}  # no divisor of the layers' 16 and 32: adjusted in each
LOKR = {"peft_type": "LOKR", "lokr_dim": 2}
KINDS = {
    "LoRA": {"lora_rank": 3, "lora_alpha": 5.0},
    "DoRA": {"lora_rank": 3, "lora_decompose": True},
    "DoRA on outputs": {"lora_rank": 3, "lora_decompose": True, "lora_decompose_output_axis": True},
    "LoHa": {"peft_type": "LOHA", "lora_rank": 3},
    "LoKr": LOKR,
    "LoKr full": LOKR | {"lokr_full_matrix": True},
    "LoKr DoRA": LOKR | {"lokr_weight_decompose": True},
    "OFT": OFT | {"oft_scaled": True},
    "OFT on kernels": OFT | {"oft_kernels": True, "oft_block_share": True},
    "OFT on outputs": OFT | {"oft_side": "OUTPUT"},
    "DoRA-OFT": OFT | {"lora_decompose": True},
}
COMPONENTS = ["unet", "text_encoder"]


def config_of(base: Path, options: dict, **changes) -> TrainConfig:
    return TrainConfig.from_dict(
        {
            "training_method": "LORA",
            "base_model_name": str(base),
            "model_type": "STABLE_DIFFUSION_15",
            "output_model_format": "KOHYA_LORA",
            "concepts": [],
            "samples": [],
            "layer_filter_preset": "custom",
            "layer_filter": "attentions,resnets",
            "unet": {"gradient_checkpointing": False},
            "text_encoder": {"gradient_checkpointing": False},
        }
        | options
        | changes
    )


@pytest.fixture(scope="module")
def model(mini_base) -> BaseModel:
    config = config_of(mini_base, {})
    return family_of(config).load(config, torch.device("cpu"))


class Notes(list):
    def __call__(self, text: str) -> None:
        assert "\n" not in text
        self.append(text)


def deltas(sets: dict[str, AdapterSet]) -> dict[str, torch.Tensor]:
    return {a.full_name: a.merged_delta() for adapters in sets.values() for a in adapters.adapters.values()}


@pytest.fixture
def start(model, mini_base, tmp_path):
    """start(options, components) -> file of a trained adapter, its config, what it does to each layer."""

    def make(options: dict, components: list[str] = COMPONENTS, **changes):
        config = config_of(mini_base, options, **changes)
        sets = make_adapters(model, config, components, Notes())
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for adapters in sets.values():
                adapters.unhook()
                for parameter in adapters.parameters():
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        path = save_adapters(tmp_path / "start.safetensors", sets, model, config, Notes())
        return path, config, deltas(sets)

    return make


def again(model, config: TrainConfig, notes: Notes, components: list[str] = COMPONENTS) -> dict[str, AdapterSet]:
    sets = make_adapters(model, config, components, notes)
    for adapters in sets.values():
        adapters.unhook()
    return sets


def test_every_registered_kind_is_here():
    kinds = {adapter_class_of(TrainConfig.from_dict(options)) for options in KINDS.values()}
    assert kinds == set(ADAPTER_CLASSES.values())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_continued(model, mini_base, start, kind):
    path, config, expected = start(KINDS[kind])
    notes = Notes()
    found = deltas(again(model, config_of(mini_base, KINDS[kind], lora_model_name=str(path), seed=7), notes))
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        # float32: rotations are written as effective weights, and magnitudes of rotations by another number than kept
        assert (found[name] - delta).abs().max() < 1e-6
    # sizes that the layers adjust are no reason to talk
    assert not [note for note in notes if "lora_model_name" in note]


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_decides_kind_and_size(model, mini_base, start, kind):
    path, _, expected = start(KINDS[kind])
    notes = Notes()
    other = config_of(mini_base, {"lora_rank": 7, "lora_alpha": 2.0}, lora_model_name=str(path))
    sets = again(model, other, notes)
    for name, delta in deltas(sets).items():
        assert (delta - expected[name]).abs().max() < 1e-6  # as above
    (note,) = [note for note in notes if "lora_model_name" in note]
    assert f"the options of {path} count, not the config's" in note
    if kind == "LoRA":
        assert "lora_rank 3 instead of 7" in note and "lora_alpha 5 instead of 2" in note
    else:
        own = KINDS[kind].get("peft_type", "LORA")
        assert f"peft_type {own} instead of LORA" in note or "lora_decompose True instead of False" in note
    assert {type(a) for s in sets.values() for a in s.adapters.values()} == {adapter_class_of(
        TrainConfig.from_dict(KINDS[kind])
    )}  # fmt: skip


def test_a_continued_file_says_how_it_rotates_whatever_the_config_says(model, mini_base, start, tmp_path):
    told = {"oft_cayley_neumann": True, "oft_kernels": True}
    path, _, expected = start(OFT | {"oft_block_share": True} | told)
    notes, config = Notes(), config_of(mini_base, OFT, lora_model_name=str(path))
    sets = again(model, config, notes)
    (note,) = [note for note in notes if "lora_model_name" in note]
    assert all(f"{option} True instead of False" in note for option in told)
    file = read_adapter(save_adapters(tmp_path / "more.safetensors", sets, model, config, Notes()))
    assert file.neumann and file.kernels
    found = deltas(again(model, config_of(mini_base, {}, lora_model_name=str(file.path)), Notes()))
    for name, delta in expected.items():
        assert (found[name] - delta).abs().max() < 1e-6  # float32


def test_components_that_the_file_lacks_get_its_kind(model, mini_base, start, tmp_path):
    """Otherwise the run would end with a file of two kinds, which nobody can load."""
    path, _, expected = start(KINDS["LoHa"], ["unet"])
    notes = Notes()
    config = config_of(mini_base, {}, lora_model_name=str(path))
    sets = again(model, config, notes)
    assert {type(a).__name__ for a in sets["text_encoder"].adapters.values()} == {"LoHaModule"}
    assert all(delta.abs().max() == 0 for delta in deltas({"te": sets["text_encoder"]}).values())
    save_adapters(tmp_path / "both.safetensors", sets, model, config, notes)
    assert str(read_adapter(tmp_path / "both.safetensors").kind) == "LoHa"


def test_lengths_made_for_comfy_are_turned_back(model, mini_base, start):
    path, config, expected = start(KINDS["DoRA on outputs"], output_model_format="COMFY_LORA")
    assert read_adapter(path).base_norm
    found = deltas(again(model, config_of(mini_base, {}, lora_model_name=str(path)), Notes()))
    for name, delta in expected.items():
        assert (found[name] - delta).abs().max() < 1e-6  # two more float32 roundings of lengths of about 1


def test_differences_are_no_adapter_to_continue(model, mini_base, start):
    path, config, _ = start(KINDS["LoRA"] | {"portable_copy": "DIFF"}, output_model_destination="elsewhere")
    assert path.exists() and not list(path.parent.glob("*.diff.*"))  # only the run's output has a copy
    config.output_model_destination = str(path)
    sets = again(model, config, Notes())
    save_adapters(path, sets, model, config, Notes())
    copy = path.with_name("start.diff.safetensors")
    with pytest.raises(UserError, match="whole weight differences.*convert_adapter"):
        again(model, config_of(mini_base, {}, lora_model_name=str(copy)), Notes())


def test_file_and_layer_are_named_if_it_does_not_fit(model, mini_base, start, tmp_path):
    path, _, _ = start(KINDS["LoRA"])
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith("attn1_to_q.lora_down.weight"))
    write_safetensors(tmp_path / "wide.safetensors", tensors | {key: torch.ones(3, 5)})
    with pytest.raises(UserError) as error:
        again(model, config_of(mini_base, {}, lora_model_name=str(tmp_path / "wide.safetensors")), Notes())
    assert "wide.safetensors" in str(error.value) and key in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_written_is_known_before_the_run(model, mini_base, start, kind):
    config = config_of(mini_base, KINDS[kind], output_model_format="DIFFUSERS_LORA")
    naming = model.adapter_naming()
    if kind in ("LoRA", "DoRA on outputs"):
        check_adapter_output(config, naming, Notes())
        return
    with pytest.raises(UserError, match="DIFFUSERS_LORA cannot hold"):
        check_adapter_output(config, naming, Notes())
    # also if the kind comes from a file
    path, _, _ = start(KINDS[kind])
    from_file = config_of(mini_base, {}, output_model_format="DIFFUSERS_LORA", lora_model_name=str(path))
    with pytest.raises(UserError, match="DIFFUSERS_LORA cannot hold"):
        check_adapter_output(from_file, naming, Notes())


def test_checking_draws_nothing_from_torch_s_generator(model, mini_base):
    for options in KINDS.values():
        torch.manual_seed(3)
        check_adapter_output(config_of(mini_base, options), model.adapter_naming(), Notes())
        drawn = torch.rand(3)
        torch.manual_seed(3)
        assert torch.equal(drawn, torch.rand(3))


def test_a_run_says_who_can_read_its_adapter_and_writes_a_copy(mini_run):
    mini_run.train(
        1, epochs=1, peft_type="OFT_2", oft_block_size=4, portable_copy="LORA", portable_copy_rank=2,
        train_dtype="BFLOAT_16", layer_filter_preset="custom", layer_filter="attn1",
    )  # fmt: skip
    copy = mini_run.output.with_name("lora.lora.safetensors")
    assert read_adapter(mini_run.output).kind.base == "OFT" and read_adapter(copy).kind.base == "LoRA"
    assert [line for line in mini_run.warnings() if str(copy) in line and "relative error" in line]
    # with a copy there is no need to warn that ComfyUI can't read the adapter itself
    assert not [line for line in mini_run.warnings() if "custom_nodes" in line]


def test_a_run_warns_and_refuses_before_it_caches(make_run):
    warned, refused = make_run("warned"), make_run("refused")
    options = {"epochs": 1, "layer_filter_preset": "custom", "layer_filter": "attn1"}
    warned.train(1, peft_type="OFT_2", oft_block_size=4, **options)
    assert [line for line in warned.warnings() if "stock ComfyUI cannot apply it" in line]
    assert [path.name for path in warned.output.parent.iterdir()] == ["lora.safetensors"]
    with pytest.raises(UserError, match="DIFFUSERS_LORA cannot hold LoHa"):
        refused.train(peft_type="LOHA", output_model_format=ModelFormat.DIFFUSERS_LORA, **options)
    stages = {event["stage"] for event in refused.of_kind("progress")}
    assert stages == set() < {event["stage"] for event in warned.of_kind("progress")}
