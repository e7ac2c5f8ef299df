"""Files for OneTrainer and ComfyUI: where the two want different ones, the format's name decides, and a line says it.

OneTrainer's formulas are written down once more. Its own modules (revision 23df3832, August 2026) took these files:
LoHa and rotations of whole kernels gave our weights to 2e-7; what is called refused here raised there.
"""

from modules.modelSaver.adapter_kinds import AdapterKind
from modules.modelSaver.adapter_layout import LAYOUTS
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.format_rules import comfy_remarks, onetrainer_remarks
from modules.modelSaver.save_adapter import save_adapter, save_parts
from modules.module.AdapterSet import AdapterSet
from modules.module.LoHaFileKind import loha_kernels
from modules.module.LoRAFileKind import LoRAFileKind
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.LayerFilter import LayerFilter
from tests.adapters import disturb
from tests.full_size import full_size_models

import torch
from torch import Tensor, nn

import pytest
from safetensors.torch import load_file

LOHA = {"peft_type": "LOHA", "lora_rank": 3, "lora_alpha": 5.0}
LAYERS = LayerFilter(("down_blocks.0", "conv_in", "mid_block.attentions"))
THEIRS = (ModelFormat.LEGACY_LORA, ModelFormat.INTERNAL)
OTHERS = (ModelFormat.KOHYA_LORA, ModelFormat.COMFY_LORA, ModelFormat.SAFETENSORS)
DESCRIPTION = AdapterDescription()


@pytest.fixture(scope="module")
def loha(base) -> dict[str, AdapterSet]:
    config = TrainConfig.from_dict(LOHA)
    sets = {"unet": AdapterSet("unet", base.unet, config, LAYERS),
            "text_encoder": AdapterSet("text_encoder", base.text_encoder, config)}  # fmt: skip
    return {component: disturb(adapters, 2) for component, adapters in sets.items()}


def parts_of(file: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in file.items() if key.startswith(f"{name}.")}


@pytest.mark.parametrize("model_format", [*THEIRS, *OTHERS])
def test_loha_of_convolutions(base, loha, tmp_path, model_format):
    """OneTrainer copies the factors into the weights of two convolutions, so that their shapes must be these."""
    path = tmp_path / "loha.safetensors"
    save_adapter(path, loha, model_format, base.naming, DESCRIPTION)
    file, seen = load_file(path), set()
    for name, adapter in loha["unet"].adapters.items():
        parts, layer = parts_of(file, base.naming.write[model_format]["unet", name]), adapter.layer
        if isinstance(layer, nn.Conv2d) and model_format in THEIRS:
            down = nn.Conv2d(layer.in_channels, 3, layer.kernel_size, bias=False).weight.shape
            up = nn.Conv2d(3, layer.out_channels, 1, bias=False).weight.shape
            assert all(parts[f"hada_w{n}_b"].shape == down and parts[f"hada_w{n}_a"].shape == up for n in (1, 2))
        else:
            assert all(parts[f"hada_w{n}_{side}"].dim() == 2 for n in (1, 2) for side in "ab")
        factors = [parts[f"hada_w{n}_a"].flatten(1) @ parts[f"hada_w{n}_b"].flatten(1) for n in (1, 2)]
        delta = (factors[0] * factors[1] * (parts["alpha"] / 3)).view(layer.weight.shape)
        assert (delta - adapter.merged_delta()).norm() < 1e-6 * delta.norm() and delta.norm() > 0
        seen.add(layer.weight.dim() and tuple(layer.weight.shape[2:]))
    assert seen == {(), (1, 1), (3, 3)}


@pytest.mark.parametrize("model_format", THEIRS)
def test_they_are_read_back_as_they_were(base, loha, tmp_path, model_format):
    path = tmp_path / "loha.safetensors"
    save_adapter(path, loha, model_format, base.naming, DESCRIPTION)
    file = read_adapter(path)
    assert file.format == model_format
    for component, layers in file.fit(base.naming, base.components).items():
        for name, parts in layers.items():
            expected = loha[component].layers()[name]
            assert parts.keys() == expected.keys()
            assert all(torch.equal(tensor, expected[part]) for part, tensor in parts.items())


def test_the_axes_tell_onetrainer_s_own_from_kohya_s(base, loha, tmp_path):
    """The names are the same for this family."""
    for model_format in (ModelFormat.KOHYA_LORA, ModelFormat.LEGACY_LORA):
        save_adapter(tmp_path / "x", loha, model_format, base.naming, DESCRIPTION)
        assert read_adapter(tmp_path / "x").format == model_format
    text = {"text_encoder": loha["text_encoder"]}  # no convolutions, so no difference
    save_adapter(tmp_path / "x", text, ModelFormat.LEGACY_LORA, base.naming, DESCRIPTION)
    assert read_adapter(tmp_path / "x").format == ModelFormat.KOHYA_LORA


def test_without_the_base_layer_factors_stay_matrices(base, loha, tmp_path):
    layers = {"unet": loha["unet"].layers()}
    save_parts(tmp_path / "x", layers, ModelFormat.LEGACY_LORA, base.naming, DESCRIPTION)
    assert all(tensor.dim() < 3 for tensor in load_file(tmp_path / "x").values())


def test_cores_are_multiplied_into_the_kernels():
    generator = torch.Generator().manual_seed(0)
    parts = {f"hada_t{n}": torch.randn(2, 2, 3, 3, generator=generator) for n in (1, 2)} | {
        f"hada_w{n}_{side}": torch.randn(2, 6 if side == "a" else 4, generator=generator)
        for n in (1, 2) for side in "ab"
    }  # fmt: skip
    found = loha_kernels(parts, (3, 3))
    assert not any(part.startswith("hada_t") for part in found)
    for n in (1, 2):
        expected = torch.einsum("pqhw,po,qi->oihw", parts[f"hada_t{n}"], parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"])
        down, up = found[f"hada_w{n}_b"], found[f"hada_w{n}_a"]
        assert up.shape == (6, 2, 1, 1) and down.shape == (2, 4, 3, 3)
        torch.testing.assert_close(torch.einsum("or,rihw->oihw", up.flatten(1), down), expected)
    lora = {"lora_down.weight": torch.ones(2, 4, 3, 3), "lora_up.weight": torch.ones(6, 2, 1, 1)}
    assert LoRAFileKind().for_layer(lora, LAYOUTS[ModelFormat.LEGACY_LORA], nn.Conv2d(4, 6, 3)) == lora


def test_text_encoders_have_the_level_that_files_have(base, loha, tmp_path):
    save_adapter(tmp_path / "x", loha, ModelFormat.INTERNAL, base.naming, DESCRIPTION)
    text = [key for key in load_file(tmp_path / "x") if key.startswith("text_encoder.")]
    assert text and all(key.startswith("text_encoder.text_model.encoder.layers.") for key in text)


# --- what is said of a file

ROTATION, OUTPUTS = AdapterKind("OFT"), AdapterKind("output-side OFT")


def one(lines: list[str]) -> str:
    assert len(lines) < 2 and not any("\n" in line for line in lines)
    return "".join(lines)


def line_of(naming, model_format: str, kind: AdapterKind, trained=lambda path: True, channels: bool = False) -> str:
    return one(onetrainer_remarks(ModelFormat(model_format), kind, naming, trained, channels))


def test_where_onetrainer_can_t_go_on(base):
    naming, loha_kind = base.naming, AdapterKind("LoHa")
    convolutions = [layer for layer in base.unet.modules() if isinstance(layer, nn.Conv2d)]
    wide = [layer for layer in convolutions if layer.kernel_size != (1, 1)]
    assert 0 < len(wide) < len(convolutions) == len(naming.kernels)
    line = line_of(naming, "KOHYA_LORA", loha_kind)
    assert f"OneTrainer refuses the {len(convolutions)} convolutions" in line and "Choose LEGACY_LORA" in line
    assert not line_of(naming, "LEGACY_LORA", loha_kind)
    # attention alone has none
    assert not line_of(naming, "KOHYA_LORA", loha_kind, LayerFilter(("attn1",)).matches)
    rotation = line_of(naming, "KOHYA_LORA", ROTATION)
    assert "oft_scaled off" in rotation and "oft_kernels" not in rotation
    assert f"refuses {len(wide)} convolutions" in line_of(naming, "KOHYA_LORA", ROTATION, channels=True)
    assert "Set oft_kernels" in line_of(naming, "LEGACY_LORA", ROTATION, channels=True)
    assert "oft_kernels" not in line_of(naming, "LEGACY_LORA", ROTATION, LayerFilter(("attn1",)).matches, True)
    for kind in (OUTPUTS, AdapterKind("OFT", "output"), AdapterKind("diff")):
        assert "OneTrainer has no such adapters" in line_of(naming, "INTERNAL", kind)
    for kind in ("LoRA", "LoKr"):
        for side in ("", "input", "output"):
            assert not line_of(naming, "KOHYA_LORA", AdapterKind(kind, side))
    for model_format in ("COMFY_LORA", "DIFFUSERS_LORA", "ORIGINAL_LORA"):  # for others
        assert not line_of(naming, model_format, ROTATION, channels=True)


@pytest.mark.parametrize(
    "kind", [AdapterKind("LoRA"), AdapterKind("LoHa"), AdapterKind("LoKr"), AdapterKind("LoRA", "output")]
)
@pytest.mark.parametrize("model_format", LAYOUTS)
def test_comfy_s_line(base, kind, model_format):
    line = one(comfy_remarks(model_format, kind, base.naming))
    if model_format in ("ORIGINAL_LORA", "INTERNAL"):
        assert "ComfyUI finds" in line and "Choose COMFY_LORA" in line
    elif model_format == "LEGACY_LORA" and kind.base == "LoHa":
        assert "ComfyUI fails on convolutions" in line
    elif kind.dora and not LAYOUTS[model_format].peft:
        assert ("adjusted, so that ComfyUI is exact" if model_format == "COMFY_LORA" else "another norm") in line
    else:
        assert not line


@pytest.fixture(scope="module")
def standards() -> dict[str, object]:
    return {model.name: model.naming for model in full_size_models()}


# As ComfyUI's own key maps (April 2026) counted them: format -> layers that it finds, of all
COUNTS = {
    "Stable Diffusion 1.x": {"ORIGINAL_LORA": (0, 282), "DIFFUSERS_LORA": (226, 354), "INTERNAL": (226, 354)},
    "Stable Diffusion 2.x": {"ORIGINAL_LORA": (0, 282), "DIFFUSERS_LORA": (292, 420), "INTERNAL": (292, 420)},
    "SDXL": {"ORIGINAL_LORA": (0, 794), "DIFFUSERS_LORA": (498, 1059), "INTERNAL": (498, 1059)},
    # these by the copies of its map in test_sd3_keys.py and test_flux1_keys.py
    "Stable Diffusion 3 medium": {"ORIGINAL_LORA": (0, 245), "DIFFUSERS_LORA": (605, 775), "INTERNAL": (605, 775)},
    "Stable Diffusion 3.5 large": {"ORIGINAL_LORA": (0, 385), "DIFFUSERS_LORA": (801, 971), "INTERNAL": (801, 971)},
    "Stable Diffusion 3.5 medium": {"ORIGINAL_LORA": (0, 271), "DIFFUSERS_LORA": (657, 827), "INTERNAL": (657, 827)},
    "Flux.1 dev": {"ORIGINAL_LORA": (0, 314)},
    "Flux.1 schnell": {"ORIGINAL_LORA": (0, 312)},
    "Flux.2 dev": {
        "ORIGINAL_LORA": (0, 171), "DIFFUSERS_LORA": (196, 203), "INTERNAL": (196, 203), "LEGACY_LORA": (196, 203)
    },
    "Flux.2 Klein 9B": {
        "ORIGINAL_LORA": (0, 121), "DIFFUSERS_LORA": (148, 153), "INTERNAL": (148, 153), "LEGACY_LORA": (148, 153)
    },
    "Flux.2 Klein 4B": {
        "ORIGINAL_LORA": (0, 89), "DIFFUSERS_LORA": (104, 109), "INTERNAL": (104, 109), "LEGACY_LORA": (104, 109)
    },
    "Z-Image": {},
    # by that copy, too
    "Chroma": {
        "ORIGINAL_LORA": (0, 243), "DIFFUSERS_LORA": (421, 433), "INTERNAL": (421, 433), "LEGACY_LORA": (421, 433)
    },
    "Qwen-Image": {},
    "Ernie-Image": {"ORIGINAL_LORA": (0, 259)},
    "Krea 2": {"ORIGINAL_LORA": (0, 264)},
    "Anima": dict.fromkeys(("ORIGINAL_LORA", "DIFFUSERS_LORA", "INTERNAL", "LEGACY_LORA"), (0, 454)),
    "HiDream-I1": {"ORIGINAL_LORA": (0, 1128), "DIFFUSERS_LORA": (1392, 1562), "INTERNAL": (1392, 1562)},
    "Ideogram 4": dict.fromkeys(("ORIGINAL_LORA",), (0, 211)) | dict.fromkeys(
        ("DIFFUSERS_LORA", "INTERNAL", "LEGACY_LORA"), (0, 279)
    ),
    "Sana 1.6B": {},
    # T5 is not known by these names, nor is a flattened name of diffusers
    "PixArt alpha": {
        "ORIGINAL_LORA": (0, 207), "DIFFUSERS_LORA": (291, 459), "INTERNAL": (291, 459), "LEGACY_LORA": (168, 459)
    },
    "PixArt Sigma": {
        "ORIGINAL_LORA": (0, 203), "DIFFUSERS_LORA": (287, 455), "INTERNAL": (287, 455), "LEGACY_LORA": (168, 455)
    },
}  # fmt: skip


# families whose native files join layers, of which ComfyUI knows single ones; and one of which it does not
_JOINED = ("Flux.", "Chroma", "Stable Diffusion 3", "PixArt")
_WHOLE = "Ideogram 4"


@pytest.mark.parametrize("name", COUNTS)
def test_how_many_layers_comfy_finds(standards, name):
    naming = standards[name]
    for model_format in naming.write:
        names = naming.written(model_format)
        known = len([own for own in names if own in naming.comfy])
        if not naming.in_comfy:
            line = one(comfy_remarks(model_format, AdapterKind("LoRA"), naming))
            assert not known and "ComfyUI does not know this model" in line
            continue
        assert (known, len(names)) == COUNTS[name].get(model_format, (len(names), len(names))), model_format
        line = one(comfy_remarks(model_format, AdapterKind("LoRA"), naming))
        told = f"finds {known} of the model's {len(names)} layers" in line
        assert told == (known < len(names) and not LAYOUTS[model_format].peft)
    apart = naming.write_apart.get(ModelFormat.COMFY_LORA, {})
    assert set(apart.values()) <= naming.comfy and bool(apart) == name.startswith(_JOINED)
    joined = one(onetrainer_remarks(ModelFormat.KOHYA_LORA, AdapterKind("LoRA"), naming))
    assert ("layers that are joined" in joined) == name.startswith((*_JOINED, "Z-Image", _WHOLE))
    assert not onetrainer_remarks(ModelFormat.LEGACY_LORA, AdapterKind("LoRA"), naming)
