"""Files of textual-inversion embeddings: vectors that stand for a word in a text encoder.

What is written loads in ComfyUI and in diffusers: `emb_params` `[tokens, width]` where a model has one text encoder,
`clip_l` and `clip_g` side by side for SDXL. Read are these, files of A1111 (`string_to_param`, a pickle) and of
diffusers (one tensor under the word).
"""

import os
from collections.abc import Mapping
from pathlib import Path

from modules.modelSaver.tensor_file import unusual
from modules.util.atomic_file import write_safetensors
from modules.util.torch_file import load_torch_file
from modules.util.UserError import UserError

import torch
from torch import Tensor

from safetensors import SafetensorError, safe_open

# of several text encoders in a file; any other name stands for the only one
ENCODER_KEYS = ("clip_l", "clip_g")
ONLY_KEY = "emb_params"
_EXPECTED = "Expected an embedding of A1111, ComfyUI, diffusers or OneTrainer."


def read_embedding(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The vectors of an embedding file, float32 `[tokens, width]`, by `clip_l`, `clip_g` or `emb_params`.

    Raises:
        UserError: the file is missing, damaged, holds more than tensors, or no embedding.
    """
    path = os.fspath(path)
    tensors = _read(path)
    if "string_to_param" in tensors:
        # beside the vectors A1111 keeps how they were trained
        tensors = tensors["string_to_param"]
        tensors = dict(tensors) if isinstance(tensors, Mapping) else {}
    vectors = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    if not set(vectors) & set(ENCODER_KEYS):
        vectors = dict(zip([ONLY_KEY], vectors.values(), strict=True)) if len(vectors) == 1 else {}
    vectors = {key: value for key, value in vectors.items() if key in (*ENCODER_KEYS, ONLY_KEY)}
    if not vectors:
        raise UserError(f"{path}: it holds no embedding. {_EXPECTED}")
    found: dict[str, Tensor] = {}
    for key, tensor in vectors.items():
        kind = unusual(tensor) or (None if tensor.is_floating_point() else f"a {tensor.dtype}")
        if kind is not None:
            raise UserError(f"{path}: {key} is {kind} tensor, expected plain floating-point numbers. {_EXPECTED}")
        tensor = tensor.detach().float()
        tensor = tensor[None] if tensor.dim() == 1 else tensor
        if tensor.dim() != 2 or not tensor.numel():
            raise UserError(f"{path}: {key} has the shape {list(tensor.shape)}, expected [tokens, width]. {_EXPECTED}")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {key} holds NaN or infinite values. Train the embedding again.")
        found[key] = tensor
    return found


def fit_embedding(
    path: str | os.PathLike[str], keys: Mapping[str, str], widths: Mapping[str, int]
) -> dict[str, Tensor]:
    """`read_embedding` for the text encoders of a model: encoder -> vectors, as many for each.

    Args:
        path: the file.
        keys: encoder -> name of its vectors in files.
        widths: encoder -> width of its vectors.

    Raises:
        UserError: as `read_embedding`; the embedding was made for another model.
    """
    vectors = read_embedding(path)
    fitted: dict[str, Tensor] = {}
    for component, key in keys.items():
        candidates = [vectors[key]] if key in vectors else list(vectors.values()) if len(keys) == 1 else []
        own = next((tensor for tensor in candidates if tensor.shape[1] == widths[component]), None)
        if own is None:
            found = ", ".join(f"{name} of width {tensor.shape[1]}" for name, tensor in vectors.items())
            raise UserError(
                f"{path}: found {found}; the {component} of this model needs {key} of width {widths[component]}. "
                "The embedding was made for another kind of base model."
            )
        fitted[component] = own
    if len({len(tensor) for tensor in fitted.values()}) > 1:
        counts = ", ".join(f"{len(tensor)} for the {component}" for component, tensor in fitted.items())
        raise UserError(f"{path}: found {counts}; expected as many vectors for each. Save the embedding again.")
    return fitted


def write_embedding(
    path: str | os.PathLike[str], vectors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes vectors `[tokens, width]` by their names in files. Raises UserError if it can't be written."""
    write_safetensors(path, {key: tensor.detach().cpu().contiguous() for key, tensor in vectors.items()}, metadata)


def _read(path: str) -> dict[str, object]:
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such file. {_EXPECTED}")
    if Path(path).suffix.lower() == ".safetensors":
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                return {key: file.get_tensor(key) for key in file.keys()}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a complete safetensors file ({error}). Download or save it again.") from error
    try:
        loaded = load_torch_file(path)
    except Exception as error:  # whatever a foreign file makes the loader raise, the answer is: not readable
        raise UserError(
            f"{path}: damaged, or holds more than tensors, so that loading it could run foreign code. It was not "
            "loaded; get the embedding as a safetensors file."
        ) from error
    return loaded if isinstance(loaded, dict) else {ONLY_KEY: loaded}
