"""Transformers in GGUF: what the package of the format's authors writes, and what it says that it holds."""

from pathlib import Path

from modules.model.BaseModel import family_of
from modules.model.weights_file import WeightsFile
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from tests.model import flux1_models, ideogram_base, krea2_base, sd3_models, zimage_base
from tests.model.family_checks import flow_options

import torch
from torch import Tensor, nn

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file

# numbers in which matrices stand, in turns
KINDS = (Kind.Q8_0, Kind.Q4_0, Kind.Q5_1, Kind.BF16, Kind.F16)
# family -> its type, and the native layout of its transformer; None: that of diffusers
FAMILIES = {
    "Flux.1": ("FLUX_DEV_1", flux1_models.native_tensors),
    "Chroma": ("CHROMA_1", flux1_models.native_tensors),
    "Flux.2 Klein": ("FLUX_2", None),
    "Z-Image": ("Z_IMAGE", zimage_base.comfy_tensors),
    "Qwen-Image": ("QWEN", None),
    "SD 3.5": ("STABLE_DIFFUSION_35", sd3_models.native_tensors),
    "Krea 2": ("KREA_2", krea2_base.native_tensors),
    "Ideogram 4": ("IDEOGRAM_4", ideogram_base.native_tensors),
}


def write_gguf(
    path: Path, tensors: dict[str, tuple[np.ndarray, Kind]], shapes: dict[str, list[int]] | None = None
) -> Path:
    """A file of tensors in the bytes of their kinds, with notes of the shapes that they stand for."""
    writer = gguf.GGUFWriter(path, "test")
    for name, shape in (shapes or {}).items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", shape)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantized(tensors: dict[str, Tensor]) -> tuple[dict[str, tuple[np.ndarray, Kind]], dict[str, Tensor]]:
    """Tensors as files in GGUF have them, vectors in float32; and the numbers that these are by the package."""
    stored, numbers = {}, {}
    for count, (name, tensor) in enumerate(tensors.items()):
        kind, data = KINDS[count % len(KINDS)], tensor.detach().float().numpy()
        if data.ndim != 2 or data.shape[-1] % 32:
            kind = Kind.F32
        stored[name] = gguf.quantize(data, kind), kind
        numbers[name] = torch.from_numpy(gguf.dequantize(stored[name][0], kind)).reshape(tensor.shape).clone()
    return stored, numbers


def transformer(folder: Path, family: str, path: Path | None = None) -> nn.Module:
    named = {"transformer": {"model_name": str(path)}} if path else {}
    config = TrainConfig.from_dict({"base_model_name": str(folder), "model_type": FAMILIES[family][0], **named})
    return family_of(config).load(config, torch.device("cpu")).transformer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_transformer_is_what_the_package_says_of_its_numbers(folder_of, tmp_path, flux2_tensors, family):
    """In every layout that is read of other files, and with layers that the file has as one."""
    folder, (_, layout) = folder_of(family), FAMILIES[family]
    plain = transformer(folder, family)
    layout = flux2_tensors if family.startswith("Flux.2") else layout
    tensors = layout(plain) if layout else plain.state_dict()
    stored, numbers = quantized(tensors)
    assert {kind for _, kind in stored.values()} >= {*KINDS}
    save_file(numbers, tmp_path / "x.safetensors")
    found = transformer(folder, family, write_gguf(tmp_path / "x-Q4_0.gguf", stored)).state_dict()
    expected = transformer(folder, family, tmp_path / "x.safetensors").state_dict()
    assert found.keys() == expected.keys()
    changed = 0
    for name, tensor in plain.state_dict().items():
        assert torch.equal(found[name], expected[name]), name
        changed += not torch.equal(found[name], tensor)
    assert changed > 5


def test_a_run_on_such_a_base(make_run, zimage_folder, tmp_path):
    """The base's numbers go into the format of the run, here 8 bits of another kind; adapters are trained."""
    stored, _ = quantized(zimage_base.comfy_tensors(transformer(zimage_folder, "Z-Image")))
    path, run = write_gguf(tmp_path / "z_image-Q8_0.gguf", stored), make_run()
    of_file = {"transformer": {"model_name": str(path), "gradient_checkpointing": False}}
    run.train(**flow_options(zimage_folder, "Z_IMAGE", epochs=1, **of_file))
    losses = [step["loss"] for step in run.of_kind("step")]
    assert len(losses) == 4 and all(np.isfinite(losses)) and run.output.is_file()


# where the blocks of formats that the package can't write have their scales, 16 bits each
@pytest.mark.parametrize(
    ("kind", "scales"),
    [(Kind.Q2_K, (80, 82)), (Kind.Q3_K, (108,)), (Kind.Q4_K, (0, 2)), (Kind.Q5_K, (0, 2)), (Kind.Q6_K, (208,)),
     (Kind.IQ4_XS, (0,)), (Kind.IQ4_NL, (0,))],
)  # fmt: skip
def test_blocks_of_other_formats(tmp_path, kind, scales):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 256, (6, 512 // block, size), dtype=np.uint8)
    for place in scales:
        data[..., place : place + 2] = np.array([0.01], np.float16).view(np.uint8)
    data = data.reshape(6, -1)
    file = WeightsFile(write_gguf(tmp_path / "x.gguf", {"a": (data, kind)}, {"a": [3, 2, 512]}))
    # a note of another shape counts
    assert file.shapes == {"a": (3, 2, 512)}
    ((name, tensor),) = file.tensors(["a"])
    assert name == "a" and tensor.std() > 0
    assert torch.equal(tensor, torch.from_numpy(gguf.dequantize(data, kind)).reshape(3, 2, 512))


def test_what_can_t_be_read(tmp_path, zimage_folder):
    path = write_gguf(tmp_path / "x.gguf", {"a": (np.zeros((2, 292), np.uint8), Kind.Q8_K)})
    with pytest.raises(UserError, match=r"x\.gguf: a has a number format that can't be read .*such as Q8_0"):
        list(WeightsFile(path).tensors(["a"]))
    # a language model in the names of llama.cpp, of which none is a layer here
    other = write_gguf(tmp_path / "y.gguf", {"blk.0.attn_q.weight": (np.zeros((2, 32), np.float32), Kind.F32)})
    with pytest.raises(UserError, match=r"y\.gguf: none of its tensors belongs here, for example blk\.0\.attn_q"):
        transformer(zimage_folder, "Z-Image", other)
    whole = path.read_bytes()
    for content in (b"GGUF", whole[:30], whole[: len(whole) // 2], whole[:-100]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"truncated, or not a \.gguf file"):
            list(WeightsFile(path).tensors(["a"]))
    path.write_bytes(b"<html>")
    with pytest.raises(UserError, match="web page"):
        WeightsFile(path)
