"""Which layers of a component are quantized, what that saves, and what a model of them does."""

import gc

from modules.model.BaseModel import family_of
from modules.model.LayerOffload import module_bytes
from modules.model.QuantizedLinear import WEIGHT_CODECS, QuantizedLinear
from modules.model.weight_formats import component_dtype, place_component, quantized_layers
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.MemoryProbe import MemoryProbe
from modules.util.UserError import UserError

import torch
from torch import nn

import pytest

CPU = torch.device("cpu")
every_format = pytest.mark.parametrize("data_type", list(WEIGHT_CODECS))


def config_of(data_type: DataType, quantization: dict | None = None, **options) -> TrainConfig:
    return TrainConfig.from_dict(
        {"train_dtype": "BFLOAT_16", "unet": {"weight_dtype": data_type}, "quantization": quantization or {}, **options}
    )


class Component(nn.Module):
    """One of each kind of layer, two of them with a shared weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 3)
        self.embedding = nn.Embedding(80, 64)
        self.norm = nn.LayerNorm(64)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))])
        self.small = nn.Linear(63, 65)
        self.odd = nn.Linear(100, 64)
        self.attention = nn.MultiheadAttention(64, 2)
        self.head = nn.Linear(64, 80, bias=False)
        self.head.weight = self.embedding.weight


def test_what_is_quantized():
    component = Component()
    eight = quantized_layers(component, "unet", config_of(DataType.INT_8))
    assert eight == ["blocks.0.0", "blocks.0.2", "odd"]
    # 64 numbers share a scale, and 100 is no multiple of that
    assert quantized_layers(component, "unet", config_of(DataType.NFLOAT_4)) == ["blocks.0.0", "blocks.0.2"]


def test_place_replaces_just_these_and_converts_the_rest():
    component = place_component(Component(), "unet", config_of(DataType.NFLOAT_4), CPU)
    quantized = [name for name, layer in component.named_modules() if isinstance(layer, QuantizedLinear)]
    assert quantized == ["blocks.0.0", "blocks.0.2"]
    assert {p.dtype for name, p in component.named_parameters() if "blocks" not in name} == {torch.bfloat16}
    assert component.head.weight is component.embedding.weight
    x = torch.randn(2, 64, dtype=torch.bfloat16)
    assert component.blocks[0](x).dtype == torch.bfloat16


def test_filter_is_of_the_denoiser():
    config = config_of(DataType.INT_8, {"layer_filter": "blocks.0.2"}, text_encoder={"weight_dtype": "INT_8"})
    assert quantized_layers(Component(), "unet", config) == ["blocks.0.2"]
    assert len(quantized_layers(Component(), "text_encoder", config)) == 3
    regex = {"layer_filter": r"\.0$", "layer_filter_regex": True}
    assert quantized_layers(Component(), "unet", config_of(DataType.INT_8, regex)) == ["blocks.0.0"]
    with pytest.raises(UserError, match=r"quantization\.layer_filter: 'attn' is in no layer name of unet"):
        quantized_layers(Component(), "unet", config_of(DataType.INT_8, {"layer_filter": "attn"}))


def test_dtype_of_everything_else_is_the_runs():
    for train, expected in (("FLOAT_32", torch.float32), ("FLOAT_16", torch.float16), ("BFLOAT_16", torch.bfloat16)):
        assert component_dtype(config_of(DataType.NFLOAT_4, train_dtype=train), "unet") == expected
    assert component_dtype(config_of(DataType.FLOAT_16), "unet") == torch.float16


REFUSED = [kind for kind in DataType if kind not in WEIGHT_CODECS and kind not in ("FLOAT_32", "FLOAT_16", "BFLOAT_16")]


@pytest.mark.parametrize("data_type", REFUSED)
def test_other_formats_are_refused_by_name(data_type):
    # NONE leaves it to the run's own, here refused as well
    config = config_of(data_type, weight_dtype="GGUF")
    name = "GGUF" if data_type == DataType.NONE else data_type
    with pytest.raises(
        UserError, match=rf"unet\.weight_dtype: found {name}, .* one of FLOAT_32, .*FLOAT_8, INT_8, NFLOAT_4\."
    ):
        component_dtype(config, "unet")


def test_a_component_of_convolutions_is_told_so():
    with pytest.raises(UserError, match=r"vae\.weight_dtype: found INT_8, but the vae has no layer .* convolutions"):
        place_component(nn.Conv2d(8, 8, 3), "vae", TrainConfig.from_dict({"vae": {"weight_dtype": "INT_8"}}), CPU)


def test_correction_by_svd_is_refused():
    with pytest.raises(UserError, match=r"quantization\.svd_dtype"):
        quantized_layers(Component(), "unet", config_of(DataType.INT_8, {"svd_dtype": "BFLOAT_16"}))


def make_transformer() -> nn.Module:
    from diffusers import Flux2Transformer2DModel

    torch.manual_seed(0)
    return Flux2Transformer2DModel(
        num_layers=1, num_single_layers=2, attention_head_dim=32, num_attention_heads=16, joint_attention_dim=256,
        timestep_guidance_channels=64, in_channels=64, axes_dims_rope=(8, 8, 8, 8),
    ).to(torch.bfloat16)  # fmt: skip


def test_a_4_bit_base_takes_at_most_035_of_the_bf16_base():
    whole = module_bytes(make_transformer())
    sizes = {
        kind: module_bytes(place_component(make_transformer(), "unet", config_of(kind), CPU)) for kind in WEIGHT_CODECS
    }
    assert sizes[DataType.NFLOAT_4] <= 0.35 * whole
    assert sizes[DataType.INT_8] == sizes[DataType.FLOAT_8] <= 0.52 * whole


def test_sdxls_unet_in_every_format():
    """Its convolutions stay: a quarter of its weights at full size."""
    import json

    from modules.model.single_file import RESOURCES

    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        config = json.loads((RESOURCES / "stable_diffusion_xl" / "unet" / "config.json").read_text(encoding="utf-8"))
        units = [UNet2DConditionModel.from_config(config).to(torch.bfloat16) for _ in range(3)]
    meta = torch.device("meta")
    whole = module_bytes(units[0])
    eight = module_bytes(place_component(units[1], "unet", config_of(DataType.INT_8), meta))
    four = module_bytes(place_component(units[2], "unet", config_of(DataType.NFLOAT_4), meta))
    assert 0.55 < eight / whole < 0.65 and 0.35 < four / whole < 0.50, (eight / whole, four / whole)


def test_loading_never_holds_the_component_twice():
    """Beside what is there already, the packed codes and some numbers of the layer that is being packed."""
    component = make_transformer()
    largest = max(layer.weight.numel() for layer in component.modules() if isinstance(layer, nn.Linear))
    gc.collect()
    with MemoryProbe() as probe:
        component = place_component(component, "unet", config_of(DataType.NFLOAT_4), CPU)
    # float32 copies of one layer: of the weight, its quotients and their places, as int32
    assert probe.peak < module_bytes(component) + 5 * 4 * largest


def load(base, **changes):
    config = TrainConfig.from_dict({"base_model_name": str(base), "train_dtype": "FLOAT_32", **changes})
    return family_of(config).load(config, CPU)


def test_captions_depend_on_the_text_encoders_format(wide_base):
    models = {kind: load(wide_base, text_encoder={"weight_dtype": kind}) for kind in ("FLOAT_32", *WEIGHT_CODECS)}
    assert len({model.text_fingerprint() for model in models.values()}) == 4
    again = load(wide_base, text_encoder={"weight_dtype": "NFLOAT_4"})
    assert again.text_fingerprint() == models["NFLOAT_4"].text_fingerprint()
    hidden = {kind: model.encode_captions(["a red square"])["hidden"] for kind, model in models.items()}
    exact = hidden.pop("FLOAT_32")
    assert all(0 < (found - exact).norm() / exact.norm() < 0.2 for found in hidden.values())


def test_small_components_are_told_so(mini_base):
    with pytest.raises(UserError, match=r"text_encoder\.weight_dtype: found INT_8, but the text_encoder has no layer"):
        _ = load(mini_base, text_encoder={"weight_dtype": "INT_8"}).components["text_encoder"]


METHODS = [{"peft_type": "LORA"}, {"peft_type": "LORA", "lora_decompose": True}, {"peft_type": "OFT_2"}]


@pytest.mark.parametrize("method", METHODS, ids=["LoRA", "DoRA", "OFT"])
@every_format
def test_runs(make_run, wide_base, data_type, method):
    """A run trains adapters on a quantized denoiser with a quantized text encoder, and draws with them."""
    run = make_run(own_cache=True)
    run.base = wide_base
    component = {"weight_dtype": data_type, "gradient_checkpointing": True}
    sample = {"prompt": "a", "width": 32, "height": 32, "diffusion_steps": 2}
    report = run.train(
        **method, unet=component, text_encoder={**component, "train": False}, oft_block_size=8, epochs=1,
        samples=[sample],
        sample_after=1, sample_after_unit="EPOCH", output_model_format="COMFY_LORA"
    )  # fmt: skip
    assert report["steps"] == 4 and run.output.is_file() and run.of_kind("sample")
    losses = [values["loss"] for values in run.of_kind("step")]
    assert all(0 < loss < 5 for loss in losses)


class Positions(nn.Module):
    """A layer, and a table that is in no file, as of the frequencies of positions in a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.register_buffer("frequencies", 10000 ** -torch.linspace(0, 1, 7), persistent=False)
        self.register_buffer("counted", torch.ones(3))


@pytest.mark.parametrize("data_type", ["BFLOAT_16", "INT_8"])
def test_computed_tables_keep_their_places(data_type):
    """At place 500 an error of a 256th would be an angle of two."""
    expected = Positions().frequencies
    component = place_component(Positions(), "unet", config_of(data_type), CPU)
    assert torch.equal(component.frequencies, expected)
    assert component.counted.dtype == component.layer.bias.dtype == torch.bfloat16


def test_a_language_model_of_16_bits_keeps_its_frequencies(zimage_folder):
    config = TrainConfig.from_dict({
        "base_model_name": str(zimage_folder), "model_type": "Z_IMAGE", "text_encoder": {"weight_dtype": "BFLOAT_16"},
    })  # fmt: skip
    encoder = family_of(config).load(config, CPU).components["text_encoder"]
    whole = type(encoder.rotary_emb)(config=encoder.config).inv_freq
    assert encoder.dtype == torch.bfloat16 and torch.equal(encoder.rotary_emb.inv_freq, whole)
