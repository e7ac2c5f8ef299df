"""One component of a model from a file of its own, as people download them.

Read are the original layout (with or without `model.diffusion_model.` before the names), that of diffusers, whole
checkpoints of ComfyUI, and 8-bit floats with one scale a tensor, which are widened.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from modules.model.families import Family, marked_types
from modules.model.ldm_keys import VAE_PREFIX, vae_name
from modules.model.unet_keys import COMFY_CLIPS, clip_file_path
from modules.model.weight_formats import float32_layers
from modules.model.weights_file import WeightsFile
from modules.util.CheckpointTensor import Share
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

from transformers import PreTrainedModel

# ComfyUI's name of a CLIP -> where whole checkpoints have it
CLIP_PREFIXES = {name: f"text_encoders.{name}.transformer." for name in COMFY_CLIPS}
T5_PREFIX = "text_encoders.t5xxl.transformer."
# the last ones are those of whole checkpoints, which hold other components as well
_WHOLE = ("model.diffusion_model.", "vae.", VAE_PREFIX, *CLIP_PREFIXES.values(), T5_PREFIX,
          "text_encoders.qwen3_4b.transformer.model.", "text_encoders.qwen25_7b.transformer.model.",
          "text_encoders.qwen25_7b.transformer.",
          "text_encoders.ministral3_3b.transformer.model.", "text_encoders.qwen3vl_4b.transformer.model.",
          "text_encoders.qwen3vl_8b.transformer.model.",
          "text_encoders.llama.transformer.model.",
          "text_encoders.qwen3_06b.transformer.model.", "llm_adapter.", "net.llm_adapter.",
          "diffusion_model.llm_adapter.", "model.diffusion_model.llm_adapter.")  # fmt: skip
_PREFIXES = ("", "diffusion_model.", "net.", "model.", "model.language_model.", "language_model.",
             "language_model.model.", *_WHOLE)  # fmt: skip
# names by which programs store the scale of an 8-bit weight; what else they store beside it changes no weight
_SCALES = ("weight_scale", "scale_weight")
_BESIDE = (
    *(*_SCALES, "input_scale", "scale_input", "comfy_quant", "scaled_fp8", "num_batches_tracked", "position_ids"),
    "_extra_state",
)
# what files of CLIP may hold beside its text encoder
_BESIDE_CLIP = ("logit_scale", "vision_model.", "visual_projection.")
_FLOAT_8 = (torch.float8_e4m3fn, torch.float8_e5m2)


class NativeTensor(NamedTuple):
    """Where a native file holds a tensor.

    Attributes:
        name: in the file.
        share: which rows of that tensor it is; None: all of it.
        swapped: the first and second half of its rows are exchanged.
        flat: all of its rows are one there.
    """

    name: str
    share: Share | None = None
    swapped: bool = False
    flat: bool = False

    def piece(self, tensor: Tensor) -> Tensor:
        """The tensor out of the file's."""
        rows = tensor if self.share is None else self.share.of(tensor)
        return rows.roll(len(rows) // 2, 0) if self.swapped else rows


# name of a tensor in diffusers or transformers -> its place in a file, without what stands before all names
Layout = Callable[[str], NativeTensor]


def check_family(path: Path, family: Family, component: str) -> None:
    """UserError if the tensors of a denoiser's file tell that it is of another family than that of `component`."""
    types = marked_types(WeightsFile(path).shapes)
    if types and not {*types} & {*family.model_types, *family.files_like}:
        raise UserError(
            f"{component}.model_name: {path} is a model of {' or '.join(types)}, but model_type is "
            f"{family.model_types[0]}. Name another file, or set model_type and base_model_name to this model's."
        )


def fill_from_file(
    path: Path,
    module: nn.Module,
    dtype: torch.dtype,
    native_of: Layout,
    unused: Sequence[str] = (),
    other_layouts: Sequence[Layout] = (),
    of_others: Sequence[str] = (),
) -> nn.Module:
    """A component with the weights of a file.

    Args:
        path: the file.
        module: the component on the meta device; it is filled.
        dtype: that the weights get.
        native_of: the original layout. That of diffusers or transformers is read as well.
        unused: how names, with a prefix or without, of tensors begin that such files may hold beside.
        other_layouts: that are read as well.
        of_others: what stands before the names of components that are like this one, in whole checkpoints.

    Raises:
        UserError: the file is broken, holds something else, or is of another size.
    """
    file = WeightsFile(path)
    targets = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith(_BESIDE)}
    prefixes = [prefix for prefix in _PREFIXES if prefix not in of_others]
    prefix, sources = _find_layout(file, targets, (native_of, *other_layouts, NativeTensor), prefixes)
    sources = {name: _named_as_in(file, prefix, place) for name, place in sources.items()}
    # each tensor of the file, and what is cut out of it
    wanted: dict[str, list[tuple[str, NativeTensor]]] = {}
    for name, place in sources.items():
        wanted.setdefault(prefix + place.name, []).append((name, place))
    # a head stands beside what its prefix is for
    _check_names(file, wanted, module, prefix, tuple(start + name for name in unused for start in ("", prefix)))
    wide = float32_layers(module, dtype)
    state: dict[str, Tensor] = {}
    for source, tensor in _weights(file, wanted):
        for name, place in wanted[source]:
            piece = _shaped(path, source, place.piece(tensor), targets[name].shape, place.flat)
            state[name] = piece.to(torch.float32 if wide & {*name.split(".")} else dtype, copy=True)
    module.load_state_dict(state, strict=False, assign=True)
    for name, buffer in list(module.named_buffers()):
        # computed, not stored: a count of batches, of which nothing depends, and CLIP's positions; what follows from a
        # module's config is left to the caller
        if buffer.is_meta and name.endswith(_BESIDE):
            owner, _, leaf = name.rpartition(".")
            value = torch.zeros_like(buffer, device="cpu")
            if leaf == "position_ids":
                value += torch.arange(buffer.shape[-1])
            setattr(module.get_submodule(owner), leaf, value)
    if isinstance(module, PreTrainedModel):
        # a matrix that has two names is one again
        module.tie_weights()
    return module.requires_grad_(False).eval()


def read_language_model(path: Path, module: nn.Module, dtype: torch.dtype, unused: Sequence[str] = ()) -> nn.Module:
    """`fill_from_file` of a language model of transformers, whose files have its own names."""
    module = fill_from_file(path, module, dtype, NativeTensor, unused)
    # frequencies are computed, and in no file
    module.rotary_emb = type(module.rotary_emb)(config=module.config)
    return module


def read_vae(path: Path, module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`fill_from_file` for an `AutoencoderKL`."""
    return fill_from_file(path, module, dtype, lambda name: NativeTensor(vae_name(name, module.config, "")))


def read_clip(path: Path, module: nn.Module, dtype: torch.dtype, name: str = "") -> nn.Module:
    """`fill_from_file` for a text encoder of CLIP, with its projection if the module has one.

    Args:
        path, module, dtype: as there.
        name: of `CLIP_PREFIXES`, where whole checkpoints have both of them.
    """
    others = [prefix for own, prefix in CLIP_PREFIXES.items() if name and own != name]
    beside = _BESIDE_CLIP if hasattr(module, "text_projection") else ("text_projection.", *_BESIDE_CLIP)
    return fill_from_file(path, module, dtype, lambda own: NativeTensor(clip_file_path(own)), beside, of_others=others)


def _find_layout(
    file: WeightsFile, targets: Mapping[str, Tensor], layouts: Sequence[Layout], prefixes: Sequence[str]
) -> tuple[str, dict[str, NativeTensor]]:
    """The prefix and the names that the file has: of all layouts, the one with most of them."""
    named = [{name: place_of(name) for name in targets} for place_of in layouts]
    found = [
        (sum(prefix + place.name in file.shapes for place in sources.values()), prefix, sources)
        for sources in named
        for prefix in prefixes
    ]
    count, prefix, sources = max(found, key=lambda entry: entry[0])
    if not count:
        raise UserError(
            f"{file.path}: none of its tensors belongs here, for example {_some(sorted(file.shapes)) or 'none'}. "
            f"Expected names such as {next(iter(named[0].values())).name}."
        )
    return prefix, sources


def _named_as_in(file: WeightsFile, prefix: str, place: NativeTensor) -> NativeTensor:
    """Norms of the original code call their weight `scale`; files that newer versions of ComfyUI saved do not."""
    other = f"{place.name.removesuffix('.scale')}.weight"
    if place.name.endswith(".scale") and prefix + place.name not in file.shapes and prefix + other in file.shapes:
        return place._replace(name=other)
    return place


def _check_names(
    file: WeightsFile, wanted: Mapping[str, object], module: nn.Module, prefix: str, unused: tuple[str, ...]
) -> None:
    kind = type(module).__name__
    if missing := sorted(wanted.keys() - file.shapes.keys()):
        raise UserError(
            f"{file.path}: lacks {len(missing)} of the {len(wanted)} tensors of this {kind} ({_some(missing)}). "
            "It is incomplete, or of another size than the base model."
        )
    own = prefix if prefix in _WHOLE else ""
    extra = sorted(
        name
        for name in file.shapes.keys() - wanted.keys()
        if name.startswith(own) and not name.endswith(_BESIDE) and not name.startswith(unused)
    )
    if extra:
        raise UserError(
            f"{file.path}: {len(extra)} of its tensors have no place in this {kind} ({_some(extra)}). It is of another "
            "size than the base model, or in a quantized format that is not supported: get the BF16 or FP8 file."
        )


def _weights(file: WeightsFile, wanted: Mapping[str, object]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the wanted tensors; 8-bit floats as float32, times their scale."""
    scale_names = {
        name: scale
        for name in wanted
        for scale in (f"{name.rpartition('.')[0]}.{ending}" for ending in _SCALES)
        if name.endswith(".weight") and scale in file.shapes
    }
    scales = dict(file.tensors(scale_names.values()))
    for name, tensor in file.tensors(wanted):
        if not tensor.is_floating_point():
            raise UserError(f"{file.path}: {name} is quantized ({tensor.dtype}). Expected the BF16 or FP8 file.")
        if name in scale_names:
            scale = scales[scale_names[name]]
            of_rows = [side for side in scale.shape if side != 1] == [len(tensor)]
            if tensor.dtype not in _FLOAT_8 or not (scale.numel() == 1 or of_rows):
                raise UserError(
                    f"{file.path}: {name} is quantized in blocks ({tensor.dtype}, scale {list(scale.shape)}). "
                    "Expected the BF16 file, or an FP8 file with one scale for each tensor or row."
                )
            tensor = tensor.float() * scale.float().reshape(-1, *[1] * (tensor.dim() - 1))
        yield name, tensor


def _shaped(path: Path, name: str, tensor: Tensor, shape: torch.Size, flat: bool) -> Tensor:
    expected = torch.Size([shape.numel()]) if flat else shape
    # attention projections of the autoencoder are 1 x 1 convolutions in one layout and matrices in the other
    if [side for side in tensor.shape if side != 1] != [side for side in expected if side != 1]:
        raise UserError(
            f"{path}: {name} has shape {list(tensor.shape)}, expected {list(expected)}. It is of another size than the "
            "base model."
        )
    return tensor.reshape(shape)


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (" …" if len(names) > 2 else "")
