"""What ComfyUI makes of our files.

Its formulas are written down here once more, from its documented behaviour and not with our modules: keys and shapes
that it accepts, the patched weight of each layer. Every file must give the weights that our merged model has.
"""

import math

from modules.model.unet_keys import unet_adapter_naming
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.portable_copy import portable_path, save_portable_copy
from modules.modelSaver.save_adapter import save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.PortableCopy import PortableCopy
from modules.util.LayerFilter import LayerFilter
from tests.adapters import disturb

import torch
from torch import Tensor

import pytest
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file

KOHYA, COMFY = ModelFormat.KOHYA_LORA, ModelFormat.COMFY_LORA
LOW_RANK = {"lora_rank": 3, "lora_alpha": 5.0}
LOKR = {"peft_type": "LOKR", "lora_alpha": 5.0, "lokr_dim": 2}
OFT = {"peft_type": "OFT_2", "oft_block_size": 8}
OUTPUTS = {"lora_decompose": True, "lora_decompose_output_axis": True}
# options, format
CASES = {
    "LoRA": (LOW_RANK, KOHYA),
    "LoRA native": (LOW_RANK, COMFY),
    "DoRA": (LOW_RANK | {"lora_decompose": True}, KOHYA),
    "DoRA native": (LOW_RANK | {"lora_decompose": True}, COMFY),
    "DoRA on outputs": (LOW_RANK | OUTPUTS, COMFY),
    "LoHa": (LOW_RANK | {"peft_type": "LOHA"}, KOHYA),
    "LoHa native": (LOW_RANK | {"peft_type": "LOHA"}, COMFY),
    "LoKr": (LOKR, KOHYA),
    "LoKr both": (LOKR | {"lokr_decompose_both": True, "lokr_dim": 1, "lokr_decompose_factor": 4}, COMFY),
    "LoKr full": (LOKR | {"lokr_full_matrix": True}, KOHYA),
    "LoKr Tucker": (LOKR | {"lokr_use_tucker": True, "lokr_decompose_factor": 4}, KOHYA),
    "LoKr DoRA": (LOKR | {"lokr_weight_decompose": True}, COMFY),
    "OFT on outputs": (OFT | {"oft_side": "OUTPUT", "oft_scaled": True}, KOHYA),
    "OFT on outputs native": (OFT | {"oft_side": "OUTPUT"}, COMFY),
    "OFT shared on outputs": (OFT | {"oft_side": "OUTPUT", "oft_block_share": True}, KOHYA),
}
# every kind of layer: linear, 1 x 1, 3 x 3, with a stride; not all of them, which takes time
LAYERS = LayerFilter(("down_blocks.0", "mid_block.resnets.0", "time_embedding"))


class Comfy:
    """Applies a file to weights as ComfyUI does, and remembers which keys it used.

    Args:
        file: the file's tensors.
        weights: name of a layer in the file -> the layer's weight.
    """

    def __init__(self, file: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
        self.file, self.weights, self.used = file, weights, set()

    def take(self, layer: str, *endings: str) -> Tensor | None:
        for ending in endings:
            key = f"{layer}.{ending}"
            if key in self.file:
                self.used.add(key)
                return self.file[key].float()
        return None

    def patched(self, layer: str) -> Tensor:
        weight, alpha = self.weights[layer].clone(), self.take(layer, "alpha")
        lengths = self.take(layer, "dora_scale")
        down, up = (self.take(layer, *endings) for endings in DOWN_UP)
        if down is not None:
            scale = 1.0 if alpha is None else alpha.item() / down.shape[0]
            delta = scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            return self.decomposed(weight, delta, lengths)
        first = self.take(layer, "hada_w1_a")
        if first is not None:
            factors = [first, *(self.take(layer, f"hada_{name}") for name in ("w1_b", "w2_a", "w2_b"))]
            assert all(factor.dim() == 2 for factor in factors), "it multiplies them as they are"
            scale = 1.0 if alpha is None else alpha.item() / factors[1].shape[0]
            delta = scale * ((factors[0] @ factors[1]) * (factors[2] @ factors[3])).reshape(weight.shape)
            return self.decomposed(weight, delta, lengths)
        blocks = self.take(layer, "oft_blocks")
        if blocks is not None:
            assert lengths is None and alpha is None, "it would drop the rotation, or bound it"
            return rotated_rows(weight, blocks)
        delta = self.take(layer, "diff")
        return weight + delta if delta is not None else self.decomposed(weight, self.kronecker(layer, alpha), lengths)

    def kronecker(self, layer: str, alpha: Tensor | None) -> Tensor:
        rank, factors = None, []
        for name in ("lokr_w1", "lokr_w2"):
            whole = self.take(layer, name)
            if whole is None:
                a, b = self.take(layer, f"{name}_a"), self.take(layer, f"{name}_b")
                rank = b.shape[0]
                core = self.take(layer, "lokr_t2") if name == "lokr_w2" else None
                whole = a @ b if core is None else torch.einsum("ijkl,jr,ip->prkl", core, b, a)
            factors.append(whole)
        first, second = factors
        if second.dim() == 4:
            first = first[..., None, None]
        scale = 1.0 if alpha is None or rank is None else alpha.item() / rank
        # as it is: with what the einsum above returns, torch 2.13 raises here
        return scale * torch.kron(first, second).reshape(self.weights[layer].shape)

    def decomposed(self, weight: Tensor, delta: Tensor, lengths: Tensor | None) -> Tensor:
        changed = weight + delta
        if lengths is None:
            return changed
        epsilon, ones = torch.finfo(torch.float32).eps, [1] * (weight.dim() - 1)
        if lengths.shape[0] == weight.shape[0]:  # by the base's norm, not by that of the sum
            norm = weight.flatten(1).norm(dim=1).reshape(-1, *ones)
        else:
            norm = changed.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *ones[1:])
        return changed * (lengths / (norm + epsilon))


DOWN_UP = (("lora_down.weight", "lora_A.weight"), ("lora_up.weight", "lora_B.weight"))


def rotated_rows(weight: Tensor, blocks: Tensor) -> Tensor:
    """W' = RᵀW on blocks of output rows, R = (I + Q)(I - Q)⁻¹ with Q = B - Bᵀ, one block after the other."""
    size, rows = blocks.shape[1], weight.flatten(1).double().split(blocks.shape[1])
    assert len(blocks) == len(rows)
    turned = []
    for block, own in zip(blocks.double(), rows, strict=True):
        q, eye = block - block.t(), torch.eye(size, dtype=torch.float64)
        turned.append(((eye + q) @ torch.linalg.inv(eye - q)).t() @ own)
    return torch.cat(turned).float().reshape(weight.shape)


@pytest.fixture(scope="module")
def base(make_pipeline):
    pipeline = make_pipeline()
    pipeline.naming = unet_adapter_naming(pipeline.unet, {"text_encoder": pipeline.text_encoder})
    pipeline.native_paths = diffusers_paths(native_names(pipeline.naming), pipeline.unet.config)
    return pipeline


def make_adapters(base, options: dict) -> dict[str, AdapterSet]:
    config = TrainConfig.from_dict(options)
    sets = {
        "unet": AdapterSet("unet", base.unet, config, LAYERS),
        "text_encoder": AdapterSet("text_encoder", base.text_encoder, config),
    }
    return {component: disturb(adapters, 2) for component, adapters in sets.items()}


def comfy_weights(base, model_format: ModelFormat) -> dict[str, Tensor]:
    """Layer name in a file -> weight, as ComfyUI's key map has it; native names come from diffusers' own converter."""
    unet = {name.removesuffix(".weight"): t for name, t in base.unet.state_dict().items() if name.endswith(".weight")}
    text = {
        "text_model." + name.removeprefix("text_model.").removesuffix(".weight"): tensor
        for name, tensor in base.text_encoder.state_dict().items()
        if name.endswith(".weight")
    }
    if model_format == KOHYA:
        found = {f"lora_unet_{name.replace('.', '_')}": tensor for name, tensor in unet.items()}
        return found | {f"lora_te_{name.replace('.', '_')}": tensor for name, tensor in text.items()}
    native = base.native_paths
    found = {f"diffusion_model.{name}": unet[path] for name, path in native.items()}
    return found | {f"text_encoders.clip_l.transformer.{name}": tensor for name, tensor in text.items()}


def native_names(naming) -> list[str]:
    prefix = "diffusion_model."
    return [name.removeprefix(prefix) for name in naming.write[COMFY].values() if name.startswith(prefix)]


def diffusers_paths(names: list[str], config) -> dict[str, str]:
    """Native layer name -> diffusers path, by diffusers' converter of checkpoints: numbers stand for the tensors."""
    checkpoint = {}
    for number, name in enumerate(names):
        for ending in ("weight", "bias"):
            checkpoint[f"model.diffusion_model.{name}.{ending}"] = torch.tensor(number)
    norms = {  # what the converter wants beside layers
        f"model.diffusion_model.{name}": torch.tensor(-1)
        for block in {name.rsplit(".in_layers", 1)[0] for name in names if ".in_layers" in name}
        for name in (f"{block}.{piece}.0.{end}" for piece in ("in_layers", "out_layers") for end in ("weight", "bias"))
    } | {f"model.diffusion_model.out.0.{ending}": torch.tensor(-1) for ending in ("weight", "bias")}
    converted = convert_ldm_unet_checkpoint(checkpoint | norms, dict(config))
    return {
        names[int(tensor)]: path.removesuffix(".weight")
        for path, tensor in converted.items()
        if path.endswith(".weight") and int(tensor) >= 0
    }


def relative_difference(base, path, model_format: ModelFormat, sets: dict[str, AdapterSet]) -> float:
    """‖W'(ComfyUI) - W'(ours)‖/‖W' - W‖ of the worst layer; also checks that ComfyUI finds a use for every key."""
    plain = {name: weight.clone() for name, weight in comfy_weights(base, model_format).items()}
    comfy = Comfy(load_file(path), plain)
    layers = {key.rsplit(".", 2 if key.endswith(".weight") else 1)[0] for key in comfy.file}
    assert len(layers) == sum(len(adapters.adapters) for adapters in sets.values())
    found = {layer: comfy.patched(layer) for layer in layers}
    assert comfy.used == comfy.file.keys()
    for adapters in sets.values():
        adapters.merge()
    ours = comfy_weights(base, model_format)
    worst = max(((found[name] - ours[name]).norm() / (ours[name] - plain[name]).norm()).item() for name in layers)
    for adapters in sets.values():
        adapters.unmerge()
    return worst


@pytest.mark.parametrize("name", CASES)
def test_comfy_makes_our_weights(base, tmp_path, name):
    options, model_format = CASES[name]
    path, sets = tmp_path / "adapter.safetensors", make_adapters(base, options)
    save_adapter(path, sets, model_format, base.naming, AdapterDescription())
    # float32 rounding of weights of about 0.1 that change by a few percent; the promise is 1e-3
    assert relative_difference(base, path, model_format, sets) < 3e-5


@pytest.mark.parametrize("options", [LOW_RANK | OUTPUTS, LOKR | {"lokr_weight_decompose": True}])
def test_lengths_on_outputs_need_the_adjustment(base, tmp_path, options):
    """The other formats hold the trained magnitude, for programs that divide by the right norm; ComfyUI does not."""
    sets = make_adapters(base, options)
    paths = {model_format: tmp_path / f"{model_format}.safetensors" for model_format in (KOHYA, COMFY)}
    for model_format, path in paths.items():
        save_adapter(path, sets, model_format, base.naming, AdapterDescription())
    assert relative_difference(base, paths[KOHYA], KOHYA, sets) > 1e-3
    assert relative_difference(base, paths[COMFY], COMFY, sets) < 3e-5
    assert read_adapter(paths[COMFY]).base_norm and not read_adapter(paths[KOHYA]).base_norm
    trained = sets["unet"].layers()
    for path in paths.values():
        for layer, parts in read_adapter(path).fit(base.naming, base.components)["unet"].items():
            # adjusted and back: two float32 roundings
            assert torch.allclose(parts["dora_scale"], trained[layer]["dora_scale"], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("options", "model_format"),
    [
        (OFT, KOHYA),
        (OFT, ModelFormat.DIFFUSERS_LORA),
        (OFT | {"lora_decompose": True}, COMFY),
        (OFT | {"oft_side": "OUTPUT", "lora_decompose": True}, KOHYA),
    ],
)
def test_portable_differences_are_exact(base, tmp_path, options, model_format):
    sets = make_adapters(base, options)
    path = portable_path(tmp_path / "adapter.safetensors", PortableCopy.DIFF)
    assert path.endswith("adapter.diff.safetensors")
    note = save_portable_copy(path, sets, PortableCopy.DIFF, 1, model_format, base.naming, AdapterDescription())
    assert path in note and "exact" in note
    # diffusers can't hold differences, so there is a kohya file instead
    written = KOHYA if model_format == ModelFormat.DIFFUSERS_LORA else model_format
    assert read_adapter(path).format == written
    assert relative_difference(base, path, written, sets) < 3e-5


def test_portable_lora_tells_its_error(base, tmp_path):
    sets = make_adapters(base, OFT)
    path = portable_path(tmp_path / "adapter.safetensors", PortableCopy.LORA)
    errors = []
    for rank in (2, 1000):
        note = save_portable_copy(path, sets, PortableCopy.LORA, rank, COMFY, base.naming, AdapterDescription())
        found = read_adapter(path).fit(base.naming, base.components)
        lost = total = 0.0
        for component, adapters in sets.items():
            copies = AdapterSet.from_parts(component, getattr(base, component), found[component])
            for layer, adapter in adapters.adapters.items():
                delta = adapter.merged_delta()
                lost += (copies.adapters[layer].merged_delta() - delta).square().sum().item()
                total += delta.square().sum().item()
        told = float(note.split("relative error ")[1].split()[0])
        # told with three digits; a full rank leaves float32 rounding
        assert told == pytest.approx(math.sqrt(lost / total), rel=0.01, abs=1e-5)
        errors.append(told)
    assert errors[0] > 0.1 and errors[1] < 1e-5


def test_half_precision_files_keep_the_promise(base, tmp_path):
    """float16 has 11 bits: each factor's rounding, 5e-4, averages out over the rank and the inputs."""
    for name in ("LoRA", "DoRA", "LoHa", "LoKr"):
        options, model_format = CASES[name]
        path, sets = tmp_path / "adapter.safetensors", make_adapters(base, options)
        save_adapter(path, sets, model_format, base.naming, AdapterDescription(), DataType.FLOAT_16)
        assert relative_difference(base, path, model_format, sets) < 1e-3
