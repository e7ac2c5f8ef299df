"""Loads Stable Diffusion 1.x and 2.x from one checkpoint file in the original (LDM) layout, without any network.

Architectures and the tokenizer come from `resources/`. A model of another size is loaded with a folder beside the
file: for `name.safetensors`, `name.config/` or `name/` with any of `unet/config.json`, `vae/config.json`,
`text_encoder/config.json`, `scheduler/scheduler_config.json` and `tokenizer/`, as diffusers writes them. What the
folder lacks is taken from the standard model.
"""

import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from modules.model.clip_tokenizer import clip_tokenizer
from modules.model.ldm_keys import (
    CLIP_PREFIX,
    OPEN_CLIP_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    clip_name,
    open_clip_name,
    unet_name,
    vae_name,
)
from modules.model.ModelSource import empty_module
from modules.model.unet_keys import native_blocks
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

import diffusers
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

RESOURCES = Path(__file__).parents[2] / "resources" / "stable_diffusion"
CONFIG_FILES = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "scheduler": "scheduler/scheduler_config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
}
PART_CLASSES = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
PICKLES = (".ckpt", ".pt", ".pth")

# 2.x above 512 pixels predicts velocity; only 2.1 needs its attention in float32
_LARGE = {"unet": {"sample_size": 96}, "scheduler": {"prediction_type": "v_prediction"}}
STANDARD: dict[ModelType, tuple[str, dict[str, dict[str, object]]]] = {
    ModelType.STABLE_DIFFUSION_15: ("sd1", {}),
    ModelType.STABLE_DIFFUSION_20_BASE: ("sd2", {}),
    ModelType.STABLE_DIFFUSION_20: ("sd2", _LARGE),
    ModelType.STABLE_DIFFUSION_21_BASE: ("sd2", {}),
    ModelType.STABLE_DIFFUSION_21: ("sd2", {**_LARGE, "unet": {**_LARGE["unet"], "upcast_attention": True}}),
}

# part of a tensor's name -> what such a file is. Looked for in this order, in files that are no SD 1.x or 2.x.
_FOREIGN = (
    (("conditioner.embedders.", "diffusion_model.label_emb."), "an SDXL checkpoint"),
    (("joint_blocks.", "double_blocks."), "a checkpoint of a transformer model such as SD 3 or Flux"),
    (("lora_", ".lora.", "hada_", "lokr_", "oft_", "dora_scale"), "a LoRA or another adapter, not a base model"),
    (("control_model.", "controlnet_"), "a ControlNet, not a base model"),
    (
        ("down_blocks.", "mid_block.", "text_model.", "encoder.layers."),
        "one component in diffusers' layout; give the whole diffusers folder instead",
    ),
    (("encoder.down.", "decoder.up."), "a VAE alone, not a base model"),
    (("emb_params", "string_to_param"), "an embedding, not a base model"),
)
# tensors of a checkpoint that no component uses: losses of the VAE's training, buffers that are computed anew
_UNUSED = ("loss.", "model_ema.")


class SingleFileSource:
    """The components of one file; see `ModelSource`. All are read at once, and again if one is asked for twice."""

    def __init__(self, path: Path, model_type: ModelType) -> None:
        self.name, self._path, self._type = str(path), path, model_type
        self._left: dict[str, Any] = {}
        self._pipeline()

    def module(self, part: str, dtype: torch.dtype) -> nn.Module:
        if part not in self._left:
            self._pipeline()
        return self._left.pop(part).to(dtype)

    def empty(self, part: str) -> nn.Module:
        if part in self._left:
            return self._left[part]
        kind, config = PART_CLASSES[part], _config(part, self._type, config_folder(self._path))
        return empty_module(kind, CLIPTextConfig.from_dict(config) if kind is CLIPTextModel else config)

    def tokenizer(self, part: str) -> CLIPTokenizer:
        return self._tokenizer

    def scheduler_config(self) -> dict[str, Any]:
        return dict(self._scheduler.config)

    def _pipeline(self) -> None:
        pipeline = load_single_file(self._path, self._type)
        self._left = {part: getattr(pipeline, part) for part in PART_CLASSES}
        self._tokenizer, self._scheduler = pipeline.tokenizer, pipeline.scheduler


def load_single_file(path: Path, model_type: ModelType) -> StableDiffusionPipeline:
    """A pipeline in float32 on the CPU from a `.safetensors`, `.ckpt`, `.pt` or `.pth` file.

    Args:
        path: the checkpoint.
        model_type: decides architecture and prediction type, unless a folder beside the file does (see above).

    Raises:
        UserError: the file is broken, holds another kind of model, or does not fit the architecture.
    """
    if model_type not in STANDARD:
        raise UserError(f"model_type: {model_type} can't be loaded from a single file as Stable Diffusion 1.x or 2.x.")
    folder = config_folder(path)
    weights = _read_weights(path, lambda names: _check_names(path, set(names), model_type, folder))
    configs = {part: _config(part, model_type, folder) for part in CONFIG_FILES}
    try:
        unet, vae, text_encoder = _components(path, configs, weights)
        tokenizer = _tokenizer(folder, configs["tokenizer"])
        scheduler = getattr(diffusers, configs["scheduler"]["_class_name"]).from_config(configs["scheduler"])
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OSError) as error:
        where = folder or f"resources for {model_type}"
        raise UserError(f"{path}: can't build the model that {where} describes: {_first_line(error)}") from error
    if len(tokenizer) > text_encoder.config.vocab_size:
        raise UserError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the text encoder only "
            f"{text_encoder.config.vocab_size}; expected a `tokenizer` folder that fits it in {path.stem}.config."
        )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def config_folder(path: Path) -> Path | None:
    """The folder beside a checkpoint that describes its architecture, if there is one with any config in it."""
    for folder in (path.with_name(f"{path.stem}.config"), path.with_suffix("")):
        if folder.is_dir() and any((folder / file).is_file() for file in CONFIG_FILES.values()):
            return folder
    return None


def _config(part: str, model_type: ModelType, folder: Path | None) -> dict[str, object]:
    standard, changes = STANDARD[model_type]
    own = folder / CONFIG_FILES[part] if folder else None
    if own is None or not own.is_file():
        config = json.loads((RESOURCES / standard / CONFIG_FILES[part]).read_text(encoding="utf-8"))
        return {**config, **changes.get(part, {})}
    try:
        config = json.loads(own.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{own}: not readable as JSON ({_first_line(error)}).") from error
    if not isinstance(config, dict):
        raise UserError(f"{own}: found a JSON {type(config).__name__}, expected an object with options.")
    return config


def _components(path: Path, configs: dict[str, dict], weights: Mapping[str, Tensor]) -> list[nn.Module]:
    """UNet, autoencoder and text encoder. Only the text encoder's config may differ in kind: CLIP or OpenCLIP."""
    # on the meta device, because random initial weights would take longer than everything else
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(configs["unet"])
        vae = AutoencoderKL.from_config(configs["vae"])
        text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"]))
    used: set[str] = set()
    blocks = native_blocks(unet.config)
    _fill(path, "unet", unet, lambda name: (unet_name(name, blocks), None), weights, used)
    _fill(path, "vae", vae, lambda name: (vae_name(name, vae.config), None), weights, used)
    if any(name.startswith(OPEN_CLIP_PREFIX) for name in weights):
        _fill(path, "text_encoder", text_encoder, open_clip_name, weights, used)
    elif any(name.startswith(f"{CLIP_PREFIX}text_model.") for name in weights):
        _fill(path, "text_encoder", text_encoder, lambda name: (clip_name(name), None), weights, used)
    else:
        # some merges lost this level of the name
        short = {name: (clip_name(name).replace("text_model.", ""), None) for name in text_encoder.state_dict()}
        _fill(path, "text_encoder", text_encoder, short.__getitem__, weights, used)
    # The text encoder may leave some out: SD 2 does not use OpenCLIP's last layer.
    prefixes = (UNET_PREFIX, VAE_PREFIX)
    extra = sorted(name for name in weights if name.startswith(prefixes) and name not in used)
    extra = [name for name in extra if not name.split(".", 1)[1].startswith(_UNUSED)]
    if extra:
        raise UserError(
            f"{path}: {len(extra)} of its tensors have no place in this architecture ({_some(extra)}). "
            + _other_architecture(path)
        )
    return [unet.eval(), vae.eval(), text_encoder.eval()]


def _fill(
    path: Path,
    part: str,
    module: nn.Module,
    name_of: Callable[[str], tuple[str, int | None]],
    weights: Mapping[str, Tensor],
    used: set[str],
) -> None:
    """Puts float32 copies of the checkpoint's tensors into `module`; adds their names to `used`."""
    state, missing = {}, []
    for name, target in module.state_dict().items():
        source, third = name_of(name)
        if source not in weights:
            missing.append(source)
            continue
        used.add(source)
        tensor = weights[source]
        if third is not None:
            tensor = tensor.chunk(3)[third]
        # attention projections are 1 x 1 convolutions in one layout and matrices in the other
        if _without_ones(tensor.shape) != _without_ones(target.shape):
            # noised image, masked image and mask: 4 + 4 + 1 channels
            inpainting = source.endswith("input_blocks.0.0.weight") and tensor.dim() == 4 and tensor.shape[1] == 9
            hint = " It is an inpainting model, which is not supported yet." if inpainting else ""
            raise UserError(
                f"{path}: {source} has shape {_shape(tensor)}, expected {_shape(target)}.{hint} "
                + _other_architecture(path)
            )
        state[name] = tensor.reshape(target.shape).to(torch.float32, copy=True)
    if missing:
        raise UserError(
            f"{path}: the {part} lacks {len(missing)} of its tensors ({_some(missing)}). " + _other_architecture(path)
        )
    module.load_state_dict(state, assign=True)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            # computed, not stored: CLIP counts its positions
            owner, _, leaf = name.rpartition(".")
            assert leaf == "position_ids", name
            setattr(module.get_submodule(owner), leaf, torch.arange(buffer.shape[-1]).expand(buffer.shape).clone())


def _tokenizer(folder: Path | None, config: Mapping[str, object]) -> CLIPTokenizer:
    if folder and (folder / "tokenizer").is_dir():
        return CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    return clip_tokenizer(str(config["pad_token"]))


def _check_names(path: Path, names: set[str], model_type: ModelType, folder: Path | None) -> None:
    """UserError unless the tensor names are those of a complete SD 1.x or 2.x checkpoint of the given type."""
    parts = {
        "UNet": f"{UNET_PREFIX}input_blocks.",
        "VAE": VAE_PREFIX,
        "text encoder": "cond_stage_model.",
    }
    missing = [part for part, prefix in parts.items() if not any(name.startswith(prefix) for name in names)]
    if missing:
        for marks, kind in _FOREIGN:
            if any(mark in name for name in names for mark in marks):
                raise UserError(f"{path}: this is {kind}. Expected a complete checkpoint for {model_type}.")
        kind = "no model at all" if len(missing) == len(parts) else f"no {' and no '.join(missing)}"
        raise UserError(
            f"{path}: holds {kind}. Expected a complete checkpoint with UNet, VAE and text encoder for {model_type}."
        )
    second = any(name.startswith(OPEN_CLIP_PREFIX) for name in names)
    if folder is None and second != (STANDARD[model_type][0] == "sd2"):
        found, fit = ("2.x", "STABLE_DIFFUSION_21") if second else ("1.x", "STABLE_DIFFUSION_15")
        raise UserError(
            f"{path}: this is a Stable Diffusion {found} checkpoint, but model_type is {model_type}. "
            f"Set model_type to the right one, for example {fit}."
        )


def _read_weights(path: Path, check: Callable[[Iterable[str]], None]) -> dict[str, Tensor]:
    """The tensors of the three components; `check` sees all names first. May share memory with the file."""
    wanted = (UNET_PREFIX, VAE_PREFIX, CLIP_PREFIX, OPEN_CLIP_PREFIX)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                check(names)
                return {name: file.get_tensor(name) for name in names if name.startswith(wanted)}
        except (SafetensorError, OSError) as error:
            raise _broken(path, error) from error
    if suffix not in PICKLES:
        raise UserError(f"{path}: found a {suffix or 'file without ending'}, expected .safetensors or .ckpt.")
    loaded = _read_pickle(path)
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    tensors = {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}
    check(tensors)
    return {name: value for name, value in tensors.items() if name.startswith(wanted)}


def _read_pickle(path: Path) -> object:
    try:
        # only the newer, zipped format can be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # PyTorch's words for a pickle that is sound but calls or names something; a damaged one reads differently
        if not any(words in str(error) for words in ("GLOBAL", "Can only", "reduce for unrecognized", "instantiate")):
            raise _broken(path, error) from error
        raise UserError(
            f"{path}: refused, because it holds Python objects beside tensors, and loading those can run any code. "
            "Expected a checkpoint with tensors only: get the .safetensors version of this model, or convert it."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> UserError:
    """What to say of a file that its own format's reader can't read."""
    try:
        with path.open("rb") as file:
            start = file.read(40)
    except OSError as unreadable:
        return UserError(f"{path}: can't be read: {unreadable.strerror}.")
    if not start:
        what = "the file is empty"
    elif start.startswith(b"version https://git-lfs"):
        what = "this is a pointer to a file in Git LFS, not the file"
    elif start.lstrip()[:1] == b"<":
        what = "this is a web page, not a model"
    else:
        what = f"truncated, or not a {path.suffix} file ({_first_line(error)})"
    return UserError(f"{path}: {what}. Download the model again.")


def _other_architecture(path: Path) -> str:
    return f"If the model has an architecture of its own, describe it in {path.stem}.config/ beside the file."


def _without_ones(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (" …" if len(names) > 2 else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
