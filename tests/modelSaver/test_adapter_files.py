"""Writing and reading adapter files of every format, and what diffusers makes of them."""

import hashlib
import json
import os
import struct

from modules.model.unet_keys import unet_adapter_naming
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.peft_settings import FOLDED_ALPHA, PEFT_METADATA
from modules.modelSaver.save_adapter import save_adapter, writable_formats
from modules.module.AdapterSet import AdapterSet
from modules.util.atomic_file import write_safetensors
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.LayerFilter import LayerFilter
from modules.util.UserError import UserError

import torch

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

DESCRIPTION = AdapterDescription(
    title="a test",
    architecture="stable-diffusion-v1",
    base_version="sd_v1",
    base_model="tiny",
    resolution="64x64",
    prediction_type="epsilon",
    config_hash="abc",
)
BOTH = [ModelFormat.KOHYA_LORA, ModelFormat.COMFY_LORA, ModelFormat.DIFFUSERS_LORA, ModelFormat.INTERNAL]


class Trained:
    """A pipeline with random adapters, and what it predicts with them."""

    def __init__(self, make_pipeline, predict, mixed_ranks: bool = False) -> None:
        self.pipeline = make_pipeline()
        self.naming = unet_adapter_naming(self.pipeline.unet, {"text_encoder": self.pipeline.text_encoder})
        self.plain = predict(self.pipeline)
        self.adapters = self.fresh(seed=3)
        if mixed_ranks:
            wide = self.fresh(seed=3, rank=6)
            for name, adapter_set in self.adapters.items():
                layers = list(adapter_set.adapters)
                for layer in layers[::3]:
                    adapter_set.adapters[layer] = wide[name].adapters[layer]
        torch.manual_seed(2)
        for adapter_set in self.adapters.values():
            for name, parameter in adapter_set.named_parameters():
                if name.endswith(".up"):
                    torch.nn.init.normal_(parameter, std=0.1)
            adapter_set.hook()
        self.hooked = predict(self.pipeline)
        for adapter_set in self.adapters.values():
            adapter_set.unhook()

    def fresh(self, seed: int = 0, rank: int = 4, **options) -> dict[str, AdapterSet]:
        # alphas that are no power of two and differ from the rank, so that a lost one shows
        unet = TrainConfig(lora_rank=rank, lora_alpha=3.0, **options)
        text = TrainConfig(lora_rank=rank, lora_alpha=7.0, **options)
        # the middle block stays without, so that files are not complete maps of the model
        layers = LayerFilter(("attentions", "resnets", "conv_in", "samplers", "time_embedding"))
        return {
            "unet": AdapterSet("unet", self.pipeline.unet, unet, layers, seed),
            "text_encoder": AdapterSet("text_encoder", self.pipeline.text_encoder, text, None, seed),
        }

    def save(self, path, model_format: ModelFormat, dtype: DataType = DataType.FLOAT_32) -> str:
        return save_adapter(path, self.adapters, model_format, self.naming, DESCRIPTION, dtype)


@pytest.fixture(scope="module")
def trained(make_pipeline, predict) -> Trained:
    return Trained(make_pipeline, predict)


def test_the_adapters_matter(trained):
    for with_adapter, without in zip(trained.hooked, trained.plain, strict=True):
        assert (with_adapter - without).abs().max() > 0.05


@pytest.mark.parametrize("model_format", BOTH)
def test_save_load_equal(trained, tmp_path, model_format):
    path = tmp_path / "lora.safetensors"
    trained.save(path, model_format)
    file = read_adapter(path)
    assert file.format == model_format and not file.extra
    resolved = file.resolve(trained.naming)
    for name, adapter_set in trained.fresh(seed=8).items():
        adapter_set.load_layers(resolved.pop(name))
        for key, tensor in adapter_set.state_dict().items():
            expected = trained.adapters[name].state_dict()[key]
            if model_format == ModelFormat.DIFFUSERS_LORA and key.endswith("lora_down.weight"):
                # alpha was multiplied in and out again, each with one float32 rounding
                assert torch.allclose(tensor, expected, rtol=3e-7, atol=0)
            else:
                assert torch.equal(tensor, expected)
    assert not resolved


@pytest.mark.parametrize("mixed_ranks", [False, True])
@pytest.mark.parametrize("model_format", [ModelFormat.KOHYA_LORA, ModelFormat.DIFFUSERS_LORA])
def test_diffusers_predicts_the_same(make_pipeline, predict, tmp_path, model_format, mixed_ranks):
    trained = Trained(make_pipeline, predict, mixed_ranks)
    trained.save(tmp_path / "lora.safetensors", model_format)
    trained.pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    for found, expected in zip(predict(trained.pipeline), trained.hooked, strict=True):
        assert (found - expected).abs().max() < 1e-4
    trained.pipeline.unload_lora_weights()


def test_unet_alone_in_original_names(trained, tmp_path):
    path = tmp_path / "lora.safetensors"
    unet = {"unet": trained.adapters["unet"]}
    save_adapter(path, unet, ModelFormat.ORIGINAL_LORA, trained.naming, DESCRIPTION)
    assert "input_blocks.1.1.proj_in.lora_A.weight" in load_file(path)
    file = read_adapter(path)
    assert file.format == ModelFormat.ORIGINAL_LORA
    trained.fresh()["unet"].load_layers(file.resolve(trained.naming)["unet"])
    with pytest.raises(UserError, match="ORIGINAL_LORA has no name for the layer text_encoder"):
        trained.save(path, ModelFormat.ORIGINAL_LORA)


def test_kohya_keys_and_metadata(trained, tmp_path):
    path = tmp_path / "lora.safetensors"
    digest = trained.save(path, ModelFormat.KOHYA_LORA, DataType.FLOAT_16)
    tensors = load_file(path)
    name = "lora_te_text_model_encoder_layers_1_self_attn_q_proj"
    assert tensors[f"{name}.lora_down.weight"].shape == (4, 32)
    assert tensors[f"{name}.lora_down.weight"].dtype == torch.float16
    assert tensors[f"{name}.alpha"].item() == 7
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    assert tensors[f"{conv}.lora_down.weight"].shape == (4, 32, 3, 3)
    assert tensors[f"{conv}.lora_up.weight"].shape == (32, 4, 1, 1)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    expected = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "a test",
        "modelspec.prediction_type": "epsilon",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "Dynamic",  # 3 and 7
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_resolution": "(64, 64)",
        "config_hash": "abc",
    }
    assert metadata | expected == metadata
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    assert metadata["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data[start:]).hexdigest()}" == f"0x{digest}"


def test_same_adapter_same_bytes(trained, tmp_path):
    for name in ("one", "two"):
        trained.save(tmp_path / name, ModelFormat.DIFFUSERS_LORA)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_half_precision_keeps_folded_alpha(trained, tmp_path):
    """A small alpha/rank must not push values out of float16's range."""
    adapters = {"text_encoder": trained.fresh(seed=3, rank=4)["text_encoder"]}
    adapter_set = adapters["text_encoder"]
    for adapter in adapter_set.adapters.values():
        torch.nn.init.normal_(adapter.up, std=1e-3)
        adapter.alpha.fill_(0.02)
        adapter.scale = 0.005
    path = tmp_path / "lora.safetensors"
    save_adapter(path, adapters, ModelFormat.DIFFUSERS_LORA, trained.naming, DESCRIPTION, DataType.FLOAT_16)
    loaded = trained.fresh()["text_encoder"]
    loaded.load_layers(read_adapter(path).resolve(trained.naming)["text_encoder"])
    for name, adapter in loaded.adapters.items():
        expected = adapter_set.adapters[name].merged_delta()
        # two float16 factors, 11 bits each
        assert (adapter.merged_delta() - expected).abs().max() < 2e-3 * expected.abs().max()


@pytest.mark.parametrize(
    ("model_format", "dtype", "words"),
    [
        (ModelFormat.DIFFUSERS, DataType.FLOAT_32, "output_model_format: DIFFUSERS cannot be written"),
        (ModelFormat.KOHYA_LORA, DataType.INT_8, "output_dtype: INT_8 cannot be written"),
    ],
)
def test_what_cannot_be_written_is_named(trained, tmp_path, model_format, dtype, words):
    with pytest.raises(UserError) as error:
        trained.save(tmp_path / "x", model_format, dtype)
    assert words in str(error.value) and not os.listdir(tmp_path)
    assert "KOHYA_LORA" in str(error.value) or "FLOAT_16" in str(error.value)
    assert ModelFormat.COMFY_LORA in writable_formats(trained.naming)


def test_unknown_layers_and_bad_numbers_are_not_written(trained, tmp_path):
    path = tmp_path / "x"
    stranger = AdapterSet("unet", torch.nn.ModuleDict({"stranger": torch.nn.Linear(2, 2)}), TrainConfig())
    with pytest.raises(UserError, match="no name for the layer unet.stranger"):
        save_adapter(path, {"unet": stranger}, ModelFormat.KOHYA_LORA, trained.naming, DESCRIPTION)
    fresh = {"unet": trained.fresh()["unet"]}
    parameter = fresh["unet"].parameters()[0]
    for value, words in ((1e6, "too large for torch.float16"), (float("nan"), "NaN")):
        torch.nn.init.constant_(parameter, value)
        with pytest.raises(UserError, match=words):
            save_adapter(path, fresh, ModelFormat.KOHYA_LORA, trained.naming, DESCRIPTION, DataType.FLOAT_16)
    assert not path.exists()


def test_damaged_and_foreign_files_are_one_line(trained, tmp_path):
    good = tmp_path / "good.safetensors"
    trained.save(good, ModelFormat.KOHYA_LORA)
    data = good.read_bytes()
    files = {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "text": b"this is no adapter, but a long enough text",
        "zeros": bytes(1000),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    write_safetensors(tmp_path / "model", {"model.diffusion_model.out.2.weight": torch.zeros(1)})
    for name in (*files, "model", "missing", "."):
        with pytest.raises(UserError) as error:
            read_adapter(tmp_path / name)
        assert "\n" not in str(error.value) and name in str(error.value)


def test_adapter_of_another_model(trained, tmp_path):
    path = tmp_path / "flux"
    name = "transformer.single_transformer_blocks.0.attn.to_q"
    write_safetensors(path, {f"{name}.lora_A.weight": torch.zeros(2, 4), f"{name}.lora_B.weight": torch.zeros(4, 2)})
    file = read_adapter(path)
    assert file.format == ModelFormat.DIFFUSERS_LORA
    with pytest.raises(UserError, match="1 of 1 layers are not in this model"):
        file.resolve(trained.naming)


def test_torch_files_load_only_without_code(trained, tmp_path):
    trained.save(tmp_path / "good", ModelFormat.KOHYA_LORA)
    torch.save(load_file(tmp_path / "good"), tmp_path / "tensors.pt")
    assert read_adapter(tmp_path / "tensors.pt").format == ModelFormat.KOHYA_LORA
    torch.save({"x": TrainConfig}, tmp_path / "code.pt")
    with pytest.raises(UserError, match=r"code.pt: a torch file \(pickle\) that is damaged or holds more than tensors"):
        read_adapter(tmp_path / "code.pt")


def test_spellings_of_other_programs(tmp_path):
    down, up = torch.zeros(2, 4), torch.zeros(4, 2)
    endings = [
        (".lora_A.weight", ".lora_B.weight"),
        (".lora_A", ".lora_B"),
        (".lora_A.default.weight", ".lora_B.default.weight"),
        (".lora_down.weight", ".lora_up.weight"),
        (".lora.down.weight", ".lora.up.weight"),
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ]
    for down_ending, up_ending in endings:
        write_safetensors(tmp_path / "x", {f"unet.a.b{down_ending}": down, f"unet.a.b{up_ending}": up})
        assert read_adapter(tmp_path / "x").layers["unet.a.b"].keys() == {"lora_down.weight", "lora_up.weight"}
    old = "unet.a.attn1.processor.to_out_lora"
    write_safetensors(tmp_path / "x", {f"{old}.down.weight": down, f"{old}.up.weight": up})
    assert list(read_adapter(tmp_path / "x").layers) == ["unet.a.attn1.to_out.0"]
    factors = {f"lora_unet_a.hada_w{n}_{side}": factor for n in (1, 2) for side, factor in (("a", up), ("b", down))}
    write_safetensors(tmp_path / "x", factors | {"bundle_emb.word.clip_l": up})
    file = read_adapter(tmp_path / "x")
    assert "hada_w1_a" in file.layers["lora_unet_a"] and list(file.extra) == ["bundle_emb.word.clip_l"]


def test_alpha_of_diffusers_files(trained, tmp_path):
    """Ours remember what was folded in; peft's settings are understood; without either, alpha is the rank."""
    tensors = {"unet.a.lora_A.weight": torch.ones(2, 4), "unet.a.lora_B.weight": torch.ones(4, 2)}
    tensors |= {key.replace(".a.", ".b."): tensor for key, tensor in tensors.items()}

    def alphas(metadata: dict[str, str]) -> list[float | None]:
        write_safetensors(tmp_path / "x", tensors, metadata)
        layers = read_adapter(tmp_path / "x").layers
        return [layers[f"unet.{name}"].get("alpha") for name in "ab"]

    assert alphas({}) == [None, None] == alphas({PEFT_METADATA: "broken"})
    settings = {"unet.r": 2, "unet.lora_alpha": 5, "unet.alpha_pattern": {"b": 9}}
    assert alphas({PEFT_METADATA: json.dumps(settings)}) == [5, 9]
    assert alphas({FOLDED_ALPHA: "0.5"}) == [0.5, 0.5]
    assert read_adapter(tmp_path / "x").layers["unet.a"]["lora_down.weight"][0, 0] == 4  # 1/(0.5/2)
    trained.save(tmp_path / "x", ModelFormat.DIFFUSERS_LORA)
    folded = json.loads(read_adapter(tmp_path / "x").metadata[FOLDED_ALPHA])
    assert set(folded.values()) == {3.0, 7.0}
