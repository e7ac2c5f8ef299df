from modules.module.AdapterSet import AdapterSet
from modules.module.kinds import ADAPTER_CLASSES, adapter_class_of
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.PeftType import PeftType
from modules.util.LayerFilter import LayerFilter
from modules.util.ParameterInfo import get_parameter_info
from modules.util.UserError import UserError

import torch
from torch import nn

import pytest

CONFIG = TrainConfig(lora_rank=3, lora_alpha=2.0)


def make_model(reverse: bool = False) -> nn.Module:
    model = nn.Module()
    layers = [("conv", nn.Conv2d(3, 8, 3, padding=1)), ("norm", nn.GroupNorm(2, 8)), ("out", nn.Linear(8, 5))]
    for name, layer in reversed(layers) if reverse else layers:
        model.add_module(name, layer)
    model.forward = lambda x: model.out(model.norm(model.conv(x)).mean((2, 3)))
    return model


def randomize(adapters: AdapterSet) -> AdapterSet:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_()
    return adapters


def test_hook_merge_and_unhook_whole_set():
    model, x = make_model(), torch.randn(2, 3, 6, 6)
    plain = model(x)
    adapters = AdapterSet("unet", model, CONFIG)
    assert torch.equal(model(x), plain)
    adapters.hook()
    assert torch.equal(model(x), plain)
    randomize(adapters)
    hooked = model(x)
    assert not torch.allclose(hooked, plain, atol=1e-2)
    adapters.unhook()
    assert torch.equal(model(x), plain)
    adapters.merge()
    assert torch.allclose(model(x), hooked, atol=1e-4)  # values of about 10 in float32
    adapters.unmerge()
    assert torch.equal(model(x), plain)


def test_start_values_do_not_depend_on_order_or_selection():
    one, other = AdapterSet("unet", make_model(), CONFIG, seed=4), AdapterSet("unet", make_model(True), CONFIG, seed=4)
    few = AdapterSet("unet", make_model(), CONFIG, LayerFilter(("out",)), seed=4)
    assert list(one.adapters) == ["conv", "out"] and list(other.adapters) == ["out", "conv"]
    assert list(few.adapters) == ["out"]
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert torch.equal(one.adapters["out"].down, few.adapters["out"].down)


def test_every_parameter_is_described_and_named_once():
    adapters = AdapterSet("unet", make_model(), CONFIG)
    names = [get_parameter_info(parameter).name for parameter in adapters.parameters()]
    assert len(set(names)) == len(names) == 4
    assert set(names) <= adapters.state_dict().keys()


def test_state_dict_round_trip_is_exact():
    config = TrainConfig(lora_rank=3, lora_alpha=0.1)
    source = randomize(AdapterSet("unet", make_model(), config))
    target = AdapterSet("unet", make_model(), config, seed=9)
    target.load_state_dict(source.state_dict())
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name])
    assert target.adapters["out"].scale == source.adapters["out"].scale


def test_loading_names_what_does_not_fit():
    source = AdapterSet("unet", make_model(), CONFIG)
    few = AdapterSet("unet", make_model(), CONFIG, LayerFilter(("out",)))
    with pytest.raises(UserError, match=r"3 tensors are missing in the file \(unet.conv.lora_down.weight"):
        source.load_state_dict(few.state_dict())
    with pytest.raises(UserError, match=r"1 of its layers are not selected here \(conv\)"):
        few.load_layers(source.layers())
    source.load_layers(few.layers(), strict=False)
    with pytest.raises(UserError, match="not selected"):
        few.load_layers(source.layers(), strict=False)
    wider = AdapterSet("unet", make_model(), TrainConfig(lora_rank=4))
    with pytest.raises(UserError, match="Set lora_rank to 3"):
        wider.load_state_dict(source.state_dict())


def test_the_config_chooses_the_kind(monkeypatch):
    for (kind, decompose), expected in ADAPTER_CLASSES.items():
        config = TrainConfig(peft_type=kind, lora_decompose=decompose)
        assert AdapterSet("unet", make_model(), config).adapter_class is expected
    # the option has no meaning for LoHa, and no effect
    left_over = TrainConfig(peft_type=PeftType.LOHA, lora_decompose=True)
    assert adapter_class_of(left_over) is ADAPTER_CLASSES[PeftType.LOHA, False]
    monkeypatch.delitem(ADAPTER_CLASSES, (PeftType.LOHA, False))
    with pytest.raises(UserError, match="peft_type: LOHA is not supported; expected one of LORA, "):
        adapter_class_of(left_over)


def test_the_file_chooses_the_kind_when_a_run_continues():
    """Layers that the file lacks get fresh adapters of its kind and size; the config's dropout stays."""
    first = AdapterSet("unet", make_model(), TrainConfig(lora_rank=2, lora_decompose=True), LayerFilter(("out",)))
    config = TrainConfig(peft_type=PeftType.LOKR, lora_rank=9, dropout_probability=0.25)
    adapters = AdapterSet("unet", make_model(), config, start=first.layers())
    assert adapters.adapter_class is ADAPTER_CLASSES[PeftType.LORA, True]
    assert {adapter.rank for adapter in adapters.adapters.values()} == {2}
    assert {adapter.dropout for adapter in adapters.adapters.values()} == {0.25}
    assert torch.equal(adapters.adapters["out"].down, first.adapters["out"].down)
    with pytest.raises(UserError, match=r"several kinds can't be continued: LoRA in out, LoHa in conv"):
        parts = {"out": {"lora_down.weight": torch.zeros(1, 8), "lora_up.weight": torch.zeros(5, 1)}}
        AdapterSet("unet", make_model(), CONFIG, start=parts | {"conv": {"hada_w1_a": torch.zeros(8, 1)}})
    with pytest.raises(UserError, match="out: the parts alpha make up no adapter"):
        AdapterSet("unet", make_model(), CONFIG, start={"out": {"alpha": torch.ones(())}})


def test_dtype_of_trained_weights():
    config = TrainConfig(lora_weight_dtype=DataType.BFLOAT_16)
    assert {p.dtype for p in AdapterSet("unet", make_model(), config).parameters()} == {torch.bfloat16}
    with pytest.raises(UserError, match="lora_weight_dtype"):
        AdapterSet("unet", make_model(), TrainConfig(lora_weight_dtype=DataType.INT_8))


def test_too_large_rank_is_one_note():
    adapters = AdapterSet("unet", make_model(), TrainConfig(lora_rank=30))
    assert adapters.notes == ["unet.conv: rank 30 is more than its smaller side 8; 1 more layer likewise"]
    assert not AdapterSet("unet", make_model(), CONFIG).notes


def test_train_and_requires_grad_reach_every_adapter():
    adapters = AdapterSet("unet", make_model(), TrainConfig(dropout_probability=0.5))
    assert all(adapter.dropout == 0.5 and adapter.training for adapter in adapters.adapters.values())
    assert not any(adapter.training for adapter in adapters.eval().adapters.values())
    adapters.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in adapters.parameters())


@pytest.mark.parametrize(
    ("options", "ignored"),
    [
        ({"peft_type": "LOHA", "lora_decompose": True, "lora_init": "NORMAL"}, ["lora_decompose", "lora_init"]),
        ({"peft_type": "LOKR", "lora_init_scale": 0.5}, ["lora_init_scale"]),
        ({"peft_type": "OFT_2", "lora_decompose": True, "lora_decompose_output_axis": True},
         ["lora_decompose_output_axis"]),
        ({"lora_init": "NORMAL", "lora_init_scale": 0.5}, []),
    ],
)  # fmt: skip
def test_options_that_a_kind_has_not_are_named(options, ignored):
    notes = [note for note in AdapterSet("unet", make_model(), TrainConfig(**options)).notes if "no effect" in note]
    assert [note.split()[0] for note in notes] == ignored
