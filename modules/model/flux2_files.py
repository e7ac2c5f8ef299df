"""The transformer and the autoencoder of Flux.2 from files of their own, as people download them.

Read are the original layout (with or without `model.diffusion_model.` before the names), that of diffusers, and 8-bit
floats with one scale a tensor, which are widened.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from modules.model.flux2_keys import NativeTensor, native_tensor
from modules.model.ldm_keys import VAE_PREFIX, vae_name
from modules.model.weights_file import WeightsFile
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "model.", "vae.", VAE_PREFIX)
# names by which programs store the scale of an 8-bit weight; what else they store beside it changes no weight
_SCALES = ("weight_scale", "scale_weight")
_BESIDE = (*_SCALES, "input_scale", "scale_input", "comfy_quant", "scaled_fp8", "num_batches_tracked")
_FLOAT_8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_VAE_OUTSIDE = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}


def fill_transformer(path: Path, transformer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A Flux.2 transformer with the weights of a file.

    Args:
        path: the file.
        transformer: the module on the meta device; it is filled.
        dtype: that the weights get.

    Raises:
        UserError: the file is broken, holds something else, or is of another size.
    """
    return _fill(path, transformer, dtype, native_tensor)


def fill_vae(path: Path, vae: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same for an `AutoencoderKLFlux2`."""

    def native(name: str) -> NativeTensor:
        layer, ending = name.rsplit(".", 1)
        if layer in _VAE_OUTSIDE:
            return NativeTensor(f"{_VAE_OUTSIDE[layer]}.{ending}")
        # the statistics that latents are normalised with have one name everywhere
        return NativeTensor(name if layer == "bn" else vae_name(name, vae.config, prefix=""))

    return _fill(path, vae, dtype, native)


def _fill(path: Path, module: nn.Module, dtype: torch.dtype, native_of: Callable[[str], NativeTensor]) -> nn.Module:
    file = WeightsFile(path)
    targets = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith(_BESIDE)}
    prefix, sources = _find_layout(file, targets, native_of)
    # each tensor of the file, and what is cut out of it
    wanted: dict[str, list[tuple[str, NativeTensor]]] = {}
    for name, place in sources.items():
        wanted.setdefault(prefix + place.name, []).append((name, place))
    _check_names(file, wanted, module)
    state: dict[str, Tensor] = {}
    for source, tensor in _weights(file, wanted):
        for name, place in wanted[source]:
            state[name] = _shaped(path, source, place.piece(tensor), targets[name].shape).to(dtype, copy=True)
    module.load_state_dict(state, strict=False, assign=True)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            # a count of batches, of which nothing depends
            owner, _, leaf = name.rpartition(".")
            assert name.endswith(_BESIDE), name
            setattr(module.get_submodule(owner), leaf, torch.zeros_like(buffer, device="cpu"))
    return module.requires_grad_(False).eval()


def _find_layout(
    file: WeightsFile, targets: Mapping[str, Tensor], native_of: Callable[[str], NativeTensor]
) -> tuple[str, dict[str, NativeTensor]]:
    """The prefix and the names that the file has: of all layouts, the one with most of them."""
    layouts = [{name: native_of(name) for name in targets}, {name: NativeTensor(name) for name in targets}]
    found = [
        (sum(prefix + place.name in file.shapes for place in sources.values()), prefix, sources)
        for sources in layouts
        for prefix in _PREFIXES
    ]
    count, prefix, sources = max(found, key=lambda entry: entry[0])
    if not count:
        raise UserError(
            f"{file.path}: none of its tensors belongs here, for example {_some(sorted(file.shapes)) or 'none'}. "
            f"Expected names such as {next(iter(layouts[0].values())).name}."
        )
    return prefix, sources


def _check_names(file: WeightsFile, wanted: Mapping[str, object], module: nn.Module) -> None:
    kind = type(module).__name__
    if missing := sorted(wanted.keys() - file.shapes.keys()):
        raise UserError(
            f"{file.path}: lacks {len(missing)} of the {len(wanted)} tensors of this {kind} ({_some(missing)}). "
            "It is incomplete, or of another size than the base model."
        )
    extra = sorted(name for name in file.shapes.keys() - wanted.keys() if not name.endswith(_BESIDE))
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
            if tensor.dtype not in _FLOAT_8 or scale.numel() != 1:
                raise UserError(
                    f"{file.path}: {name} is quantized in blocks or rows ({tensor.dtype}, scale {list(scale.shape)}). "
                    "Expected the BF16 file, or an FP8 file with one scale for each tensor."
                )
            tensor = tensor.float() * scale.float().reshape(())
        yield name, tensor


def _shaped(path: Path, name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    # attention projections of the autoencoder are 1 x 1 convolutions in one layout and matrices in the other
    if [side for side in tensor.shape if side != 1] != [side for side in shape if side != 1]:
        raise UserError(
            f"{path}: {name} has shape {list(tensor.shape)}, expected {list(shape)}. It is of another size than the "
            "base model."
        )
    return tensor.reshape(shape)


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (" …" if len(names) > 2 else "")
