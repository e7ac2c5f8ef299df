"""Components of HiDream from the files that people have: ComfyUI's, published ones, and those that are refused."""

import shutil
from pathlib import Path

from modules.model.HiDreamModel import CLIPS, HiDreamModel
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError
from tests.model.conftest import ldm_vae
from tests.model.test_flux1_files import FLUX1_VAE_NAMES
from tests.model.test_flux2_files import same, write
from tests.model.test_hidream_model import CAPTIONS, load, shared

import torch
from torch import Tensor, nn

import pytest

MATRIX = "single_stream_blocks.0.block.ff_i.experts.2.w1.weight"
COMFY = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl", "text_encoder_4": "llama"}


def tensors_of(component: str, pipeline, whole: bool = False) -> dict[str, Tensor]:
    """As ComfyUI's files have them: of one component each, or of a whole checkpoint."""
    module = getattr(pipeline, component)
    if component == "vae":
        return ldm_vae(module, FLUX1_VAE_NAMES, "vae." if whole else "")
    start = "" if not whole else "model.diffusion_model."
    if component in COMFY:
        start = f"text_encoders.{COMFY[component]}.transformer." if whole else ""
    return {f"{start}{name}": tensor.clone() for name, tensor in module.state_dict().items()}


def of_run(component: str, pipeline) -> nn.Module:
    """Llama without its head."""
    module = getattr(pipeline, component)
    return module.model if component == "text_encoder_4" else module


def component(folder: Path, name: str, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    return load(folder, **{name: {"model_name": str(write(tensors, path))}}).components[name]


@pytest.mark.parametrize("name", HiDreamModel.modules)
def test_split_files(hidream_folder, hidream_pipeline, tmp_path, name):
    tensors = tensors_of(name, hidream_pipeline)
    assert ("lm_head.weight" in tensors) == (name == "text_encoder_4")
    assert ("text_projection.weight" in tensors) == (name in CLIPS)
    found = component(hidream_folder, name, tensors, tmp_path / "x.safetensors")
    same(found, of_run(name, hidream_pipeline).requires_grad_(False))


def test_a_file_of_llama_reads_as_its_folder(hidream_folder, hidream_pipeline, tmp_path):
    path = write(tensors_of("text_encoder_4", hidream_pipeline), tmp_path / "llama_3.1_8b_instruct.safetensors")
    model = load(hidream_folder, text_encoder_4={"model_name": str(path)})
    found, expected = (own.encode_captions(CAPTIONS)["states"] for own in (model, shared(hidream_folder)))
    assert torch.equal(found, expected)


def test_a_whole_checkpoint(hidream_folder, hidream_pipeline, tmp_path):
    """Each component takes what is its own, and the base model's folder needs no weights."""
    bare = shutil.copytree(hidream_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {}
    for name in HiDreamModel.modules:
        tensors |= tensors_of(name, hidream_pipeline, whole=True)
    path = write(tensors, tmp_path / "hidream.safetensors")
    found = load(bare, **{name: {"model_name": str(path)} for name in HiDreamModel.modules})
    for name in HiDreamModel.modules:
        same(found.components[name], of_run(name, hidream_pipeline).requires_grad_(False))


def test_float_8_is_widened(hidream_folder, hidream_pipeline, tmp_path):
    """Of an expert, with the scale that ComfyUI's files have beside it."""
    tensors = tensors_of("transformer", hidream_pipeline)
    whole = tensors[MATRIX]
    scale = whole.abs().max() / 448
    tensors |= {MATRIX: (whole / scale).to(torch.float8_e4m3fn), "scaled_fp8": torch.zeros(0)}
    tensors[MATRIX.replace("weight", "scale_weight")] = scale
    found = component(hidream_folder, "transformer", tensors, tmp_path / "hidream_i1_full_fp8.safetensors")
    # three digits after the leading one: half a step is 1/16
    difference = (found.state_dict()[MATRIX] - whole).abs().max()
    assert 0 < difference <= whole.abs().max() / 16


def test_what_is_written_is_this_layout(hidream_folder, hidream_pipeline):
    made = load(hidream_folder).checkpoint_tensors(ModelFormat.ORIGINAL_TRANSFORMER)
    state = hidream_pipeline.transformer.state_dict()
    found = {one.name: one.join([state[name] for _, name in one.sources]) for one in made}
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(MATRIX), rf"lacks 1 of the .* \({MATRIX}\)"),
        (lambda t: t.update({MATRIX: t[MATRIX][:-7]}), rf"{MATRIX} has shape .* of another size"),
        (lambda t: t.update({MATRIX: t[MATRIX].to(torch.int8)}), r"w1\.weight is quantized .*Expected the BF16 or FP8"),
        (lambda t: t.update({"caption_projection.9.linear.weight": torch.ones(1)}), "1 of its tensors have no place"),
    ],
)
def test_files_that_do_not_fit_are_named(hidream_folder, hidream_pipeline, tmp_path, change, words):
    tensors = tensors_of("transformer", hidream_pipeline)
    change(tensors)
    with pytest.raises(UserError, match=words):
        component(hidream_folder, "transformer", tensors, tmp_path / "x.safetensors")


def test_files_of_other_kinds_are_refused_by_name(hidream_folder, tmp_path):
    other = {"transformer_blocks.0.txt_mod.1.bias": torch.ones(1)}
    with pytest.raises(UserError, match=r"is a model of QWEN, but model_type is HI_DREAM_FULL"):
        component(hidream_folder, "transformer", other, tmp_path / "x.safetensors")
