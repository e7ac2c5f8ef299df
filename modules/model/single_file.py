"""Loads Stable Diffusion 1.x, 2.x and XL from one checkpoint file in the original (LDM) layout, without any network.

Architectures and the tokenizer come from `resources/`. A model of another size is loaded with a folder beside the
file: for `name.safetensors`, `name.config/` or `name/` with any of `unet/config.json`, `vae/config.json`,
`text_encoder/config.json`, `scheduler/scheduler_config.json`, `tokenizer/` and so on, as diffusers writes them. What
the folder lacks is taken from the standard model.
"""

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modules.model.clip_tokenizer import clip_tokenizer
from modules.model.families import (
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_INPAINTING,
    STABLE_DIFFUSION_XL,
    STABLE_DIFFUSION_XL_INPAINTING,
    Changes,
    marked_types,
)
from modules.model.ldm_keys import (
    CLIP_PREFIX,
    OPEN_CLIP_PREFIX,
    TEXT_PREFIXES,
    UNET_PREFIX,
    VAE_PREFIX,
    Place,
    clip_name,
    open_clip_place,
    unet_name,
    vae_name,
)
from modules.model.ModelSource import empty_module
from modules.model.unet_keys import clip_file_path, native_blocks
from modules.model.weights_file import WeightsFile, first_line
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

import diffusers
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedModel

RESOURCES = Path(__file__).parents[2] / "resources"
COMPONENT_CLASSES = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
XL_CLASSES = {**COMPONENT_CLASSES, "text_encoder_2": CLIPTextModelWithProjection}
# tokenizer -> the text encoder that reads its tokens
TOKENIZERS = {
    "tokenizer": "text_encoder",
    **{f"tokenizer_{number}": f"text_encoder_{number}" for number in (2, 3, 4)},
    "t5_tokenizer": "text_conditioner",
}
SD1, SD2 = (model.folder for model in STABLE_DIFFUSION.standard_models)
(SDXL,) = (model.folder for model in STABLE_DIFFUSION_XL.standard_models)

# model type -> folder in `resources/`, and what differs from it
STANDARD: dict[ModelType, tuple[str, Changes]] = {
    kind: (model.folder, changes)
    for family in (STABLE_DIFFUSION, STABLE_DIFFUSION_INPAINTING, STABLE_DIFFUSION_XL, STABLE_DIFFUSION_XL_INPAINTING)
    for model in family.standard_models
    for kind, changes in model.types.items()
}
# folder -> what such a model is called, and a model type that fits it
_GENERATIONS = {
    SD1: ("a Stable Diffusion 1.x", ModelType.STABLE_DIFFUSION_15),
    SD2: ("a Stable Diffusion 2.x", ModelType.STABLE_DIFFUSION_21_BASE),
    SDXL: ("an SDXL", ModelType.STABLE_DIFFUSION_XL_10_BASE),
}

# part of a tensor's name -> what such a file is. Looked for in this order, in files that are no complete checkpoint.
_FOREIGN = (
    (("conditioner.embedders.0.model.",), "an SDXL refiner"),
    (("joint_blocks.", "double_blocks."), "a checkpoint of a transformer model such as SD 3 or Flux"),
    (("lora_", ".lora.", "hada_", "lokr_", "oft_", "dora_scale"), "a LoRA or another adapter, not a base model"),
    (("control_model.", "controlnet_"), "a ControlNet, not a base model"),
    (("emb_params", "string_to_param"), "an embedding, not a base model"),
)
# the same for how a name starts
_FOREIGN_STARTS = (
    (
        ("down_blocks.", "mid_block.", "text_model.", "encoder.layers."),
        "one component in diffusers' layout; give the whole diffusers folder instead",
    ),
    (("encoder.down.", "decoder.up."), "a VAE alone, not a base model"),
)
# tensors of a checkpoint that no component uses: losses of the VAE's training, buffers that are computed anew
_UNUSED = ("loss.", "model_ema.")

# a component's tensor -> its place in a file
Layout = Mapping[str, Place]


class SingleFileSource:
    """The components of one file; see `ModelSource`. Each is read when it is asked for, and again if asked twice.

    Args:
        path: a `.safetensors`, `.ckpt`, `.pt` or `.pth` file.
        model_type: decides architecture and prediction type, unless a folder beside the file does (see above).
        elsewhere: components that are taken from another place, so that the file may lack them.

    Raises:
        UserError: the file is broken, holds another kind of model, or does not fit the architecture.
    """

    def __init__(self, path: Path, model_type: ModelType, elsewhere: Collection[str] = ()) -> None:
        if model_type not in STANDARD:
            raise UserError(f"{path}: can't be loaded as {model_type}; expected one of {', '.join(STANDARD)}.")
        self.name, self._type = str(path), model_type
        self._folder = config_folder(path)
        self._file = WeightsFile(path)
        self.classes = XL_CLASSES if STANDARD[model_type][0] == SDXL else COMPONENT_CLASSES
        _check_names(path, self._file.shapes, model_type, self._folder, elsewhere)
        with self._building():
            self._empty = {component: self._new(component) for component in self.classes}
            self._layouts = {
                component: checked_layout(self._file, component, empty)
                for component, empty in self._empty.items()
                if component not in elsewhere
            }
            self._tokenizers = {
                name: self._tokenizer(name) for name, component in TOKENIZERS.items() if component in self._empty
            }
            self._scheduler = self._scheduler_config()

    def module(self, component: str, dtype: torch.dtype) -> nn.Module:
        module = self._new(component)
        fill(module, self._file, self._layouts[component], dtype)
        return module.eval()

    def files(self, component: str) -> list[Path]:
        return [self._file.path]

    def empty(self, component: str) -> nn.Module:
        return self._empty[component]

    def tokenizer(self, component: str) -> CLIPTokenizer:
        return self._tokenizers[component]

    def scheduler_config(self) -> dict[str, Any]:
        return dict(self._scheduler)

    def _new(self, component: str) -> nn.Module:
        """A component on the meta device: random initial weights would take longer than everything else."""
        kind, config = self.classes[component], self._config(component)
        return empty_module(kind, CLIPTextConfig.from_dict(config) if issubclass(kind, PreTrainedModel) else config)

    def _config(self, component: str) -> dict[str, Any]:
        standard, changes = STANDARD[self._type]
        own = self._folder / config_file(component) if self._folder else None
        if own is None or not own.is_file():
            config = json.loads((RESOURCES / standard / config_file(component)).read_text(encoding="utf-8"))
            return {**config, **changes.get(component, {})}
        try:
            config = json.loads(own.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise UserError(f"{own}: not readable as JSON ({first_line(error)}).") from error
        if not isinstance(config, dict):
            raise UserError(f"{own}: found a JSON {type(config).__name__}, expected an object with options.")
        return config

    def _tokenizer(self, name: str) -> CLIPTokenizer:
        if self._folder and (self._folder / name).is_dir():
            tokenizer = CLIPTokenizer.from_pretrained(str(self._folder / name), local_files_only=True)
        else:
            tokenizer = clip_tokenizer(str(self._config(name)["pad_token"]))
        size = self._empty[TOKENIZERS[name]].config.vocab_size
        if len(tokenizer) > size:
            raise UserError(
                f"{self.name}: the tokenizer has {len(tokenizer)} tokens, the text encoder only {size}; "
                f"expected a `{name}` folder that fits it in {Path(self.name).stem}.config."
            )
        return tokenizer

    def _scheduler_config(self) -> dict[str, Any]:
        config = self._config("scheduler")
        if not (self._folder and (self._folder / config_file("scheduler")).is_file()):
            config |= marked_schedule(self._file)
        self.scheduler_class = config["_class_name"]
        return dict(getattr(diffusers, self.scheduler_class).from_config(config).config)

    @contextmanager
    def _building(self) -> Iterator[None]:
        """Says in one line that a described model can't be built."""
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OSError) as error:
            where = self._folder or f"resources for {self._type}"
            raise UserError(
                f"{self.name}: can't build the model that {where} describes: {first_line(error)}"
            ) from error


def load_single_file(path: Path, model_type: ModelType) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """A pipeline in float32 on the CPU with everything that a `SingleFileSource` has."""
    source = SingleFileSource(path, model_type)
    components = {component: source.module(component, torch.float32) for component in source.classes}
    tokenizers = {name: source.tokenizer(name) for name, component in TOKENIZERS.items() if component in components}
    config = source.scheduler_config()
    scheduler = getattr(diffusers, source.scheduler_class).from_config(config)
    if source.classes is XL_CLASSES:
        return StableDiffusionXLPipeline(**components, **tokenizers, scheduler=scheduler, add_watermarker=False)
    return StableDiffusionPipeline(
        **components, **tokenizers, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def model_type_of(path: Path) -> ModelType:
    """A model type that fits a checkpoint of Stable Diffusion 1.x, 2.x or XL; UserError if it is none of these."""
    shapes = WeightsFile(path).shapes
    for kind in marked_types(shapes):
        if kind in (*STABLE_DIFFUSION_INPAINTING.model_types, *STABLE_DIFFUSION_XL_INPAINTING.model_types):
            return kind
    generation = _generation(shapes)
    # a file of another kind is told what it is by the check of the first type
    return ModelType.STABLE_DIFFUSION_15 if generation is None else _GENERATIONS[generation][1]


def load_component(path: Path, component: str, like: nn.Module, dtype: torch.dtype) -> nn.Module:
    """One component out of a file: of its own, in the original layout or in diffusers', or a whole checkpoint.

    Args:
        path: the file.
        component: the component's name.
        like: the same component of the base model, on the meta device.
        dtype: of the weights.

    Raises:
        UserError: the file is broken, or does not fit `like`.
    """
    file, module = WeightsFile(path), copy.deepcopy(like)
    try:
        layout = checked_layout(file, component, module)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path}: the base model's {component} has no names in such files: {first_line(error)}."
        ) from error
    fill(module, file, layout, dtype)
    return module.eval()


def config_file(component: str) -> str:
    """Where a folder in diffusers' layout describes a component."""
    if component in TOKENIZERS:
        return f"{component}/tokenizer_config.json"
    if component == "processor":
        return f"{component}/preprocessor_config.json"
    return f"{component}/{'scheduler_config' if component == 'scheduler' else 'config'}.json"


def config_folder(path: Path) -> Path | None:
    """The folder beside a checkpoint that describes its architecture, if there is one with any config in it."""
    files = [config_file(component) for component in (*XL_CLASSES, *TOKENIZERS, "scheduler")]
    for folder in (path.with_name(f"{path.stem}.config"), path.with_suffix("")):
        if folder.is_dir() and any((folder / file).is_file() for file in files):
            return folder
    return None


def checked_layout(file: WeightsFile, component: str, module: nn.Module) -> Layout:
    """Where a file holds a component's tensors: of the layouts that are in use, the one that fits best.

    Raises:
        UserError: tensors are missing, have other shapes, or have no place in the component.
    """
    path, names = file.path, file.shapes
    targets = module.state_dict()
    prefix, layout = max(
        ((prefix, {name: place(name) for name in targets}) for prefix, place in _layouts(component, module, names)),
        key=lambda found: sum(place.name in names for place in found[1].values()),
    )
    missing = [place.name for place in layout.values() if place.name not in names]
    for name, place in layout.items():
        shape = place.shape(names[place.name]) if place.name in names else targets[name].shape
        # attention projections are 1 x 1 convolutions in one layout and matrices in the other
        if _without_ones(shape) != _without_ones(targets[name].shape):
            hint = _inpainting_hint(shape[1]) if component == "unet" and name == "conv_in.weight" else ""
            raise UserError(
                f"{path}: {place.name} has shape {list(shape)}, expected {list(targets[name].shape)}.{hint} "
                + _other_architecture(path)
            )
    if missing:
        raise UserError(
            f"{path}: the {component} lacks {len(missing)} of its tensors ({_some(missing)}). "
            + _other_architecture(path)
        )
    used = {place.name for place in layout.values()}
    extra = sorted(name for name in names if name.startswith(prefix) and name not in used)
    extra = [name for name in extra if not name.removeprefix(prefix).startswith(_UNUSED)]
    # of text encoders something may be left out: SD 2 does not use OpenCLIP's last layer
    if extra and component in ("unet", "vae"):
        raise UserError(
            f"{path}: {len(extra)} of its tensors have no place in this architecture ({_some(extra)}). "
            + _other_architecture(path)
        )
    return layout


def _inpainting_hint(channels: int) -> str:
    # noised image, masked image and mask: 4 + 4 + 1 channels
    return {
        9: " It is an inpainting model: set model_type to one that ends with _INPAINTING.",
        4: " It is no inpainting model: set model_type to one that does not end with _INPAINTING.",
    }.get(channels, "")


def _layouts(component: str, module: nn.Module, names: Collection[str]) -> Iterator[tuple[str, Callable[[str], Place]]]:
    """(prefix, tensor of the component -> its place) of each layout in which files hold such a component."""
    if component == "unet":
        blocks = native_blocks(module.config)
        for prefix in (UNET_PREFIX, "diffusion_model.", ""):
            yield prefix, lambda name, start=prefix: Place(unet_name(name, blocks, start))
        yield "", Place
    elif component == "vae":
        for prefix in (VAE_PREFIX, ""):
            yield prefix, lambda name, start=prefix: Place(vae_name(name, module.config, start))
        yield "", Place
        yield "", lambda name: Place(_old_attention(name))
    else:
        for prefix in (*TEXT_PREFIXES[component], ""):
            clip, open_clip = (prefix + CLIP_PREFIX, prefix + OPEN_CLIP_PREFIX) if prefix else ("", "")
            yield prefix, lambda name, start=open_clip: _projection(open_clip_place(name, start), names)
            yield prefix, lambda name, start=clip: Place(clip_name(name, start))
            # some merges lost this level of the name
            yield prefix, lambda name, start=clip: Place(start + clip_file_path(name).removeprefix("text_model."))


def _projection(place: Place, names: Collection[str]) -> Place:
    """Some trainers write OpenCLIP's projection as a layer: under another name, and not transposed."""
    layer = f"{place.name}.weight"
    return Place(layer) if place.transposed and layer in names else place


def _old_attention(name: str) -> str:
    """The name of a VAE's tensor as early versions of diffusers wrote it."""
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name


def fill(module: nn.Module, file: WeightsFile, layout: Layout, dtype: torch.dtype) -> None:
    """Gives a module on the meta device its weights: copies in `dtype` of the file's tensors, one after the other."""
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    wanted: dict[str, list[str]] = defaultdict(list)
    for name, place in layout.items():
        wanted[place.name].append(name)
    state: dict[str, Tensor] = {}
    for source, tensor in file.tensors(source for source in file.shapes if source in wanted):
        for name in wanted[source]:
            piece = layout[name].piece(tensor).reshape(shapes[name])
            state[name] = piece.to(dtype, copy=True, memory_format=torch.contiguous_format)
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            # computed, not stored: CLIP counts its positions
            owner, _, leaf = name.rpartition(".")
            assert leaf == "position_ids", name
            setattr(module.get_submodule(owner), leaf, torch.arange(buffer.shape[-1]).expand(buffer.shape).clone())


def marked_schedule(file: WeightsFile) -> dict[str, Any]:
    """The options of the scheduler that a file tells of itself.

    Fine-tunes that predict velocity hold a tensor `v_pred`, and one `ztsnr` if their schedule ends without signal,
    which ComfyUI reads; trainers that follow the Stability AI model metadata standard say it in the metadata.
    """
    config: dict[str, Any] = {}
    if "v_pred" in file.shapes or file.metadata.get("modelspec.prediction_type") == "v":
        config["prediction_type"] = "v_prediction"
    if "ztsnr" in file.shapes:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


def _generation(names: Collection[str]) -> str | None:
    """The standard folder of a checkpoint's kind, by its text encoders; None if it has none that is known."""
    starts = {
        SD2: ("cond_stage_model.model.",),
        SD1: ("cond_stage_model.",),
        # the refiner's first one is OpenCLIP's
        SDXL: ("conditioner.embedders.1.", "conditioner.embedders.0.transformer."),
    }
    return next((kind for kind, start in starts.items() if any(name.startswith(start) for name in names)), None)


def _check_names(
    path: Path, names: Collection[str], model_type: ModelType, folder: Path | None, elsewhere: Collection[str]
) -> None:
    """UserError unless the tensor names are those of a complete checkpoint of the given type."""
    standard = STANDARD[model_type][0]
    found = _generation(names)
    # with an architecture of its own it may be either of the first two
    fits = (found == SDXL) == (standard == SDXL) if folder else found == standard
    if found and not fits:
        what, fit = _GENERATIONS[found]
        raise UserError(
            f"{path}: this is {what} checkpoint, but model_type is {model_type}. "
            f"Set model_type to the right one, for example {fit}."
        )
    if any(name.startswith(("edm_mean", "edm_vpred.")) for name in names):
        raise UserError(f"{path}: this model was trained with EDM's noise, which is not supported.")
    components = {"unet": ("UNet", (UNET_PREFIX,)), "vae": ("VAE", (VAE_PREFIX,)),
             "text_encoder": ("text encoder", TEXT_PREFIXES["text_encoder"])}  # fmt: skip
    if standard == SDXL:
        components["text_encoder_2"] = ("second text encoder", TEXT_PREFIXES["text_encoder_2"])
    lacking = {component: kind for component, (kind, prefixes) in components.items() if component not in elsewhere
               and not any(name.startswith(prefixes) for name in names)}  # fmt: skip
    if not lacking:
        return
    foreign = [kind for marks, kind in _FOREIGN if any(mark in name for name in names for mark in marks)]
    foreign += [kind for starts, kind in _FOREIGN_STARTS if any(name.startswith(starts) for name in names)]
    if foreign:
        raise UserError(f"{path}: this is {foreign[0]}. Expected a complete checkpoint for {model_type}.")
    kind = "no model at all" if len(lacking) == len(components) else f"no {' and no '.join(lacking.values())}"
    raise UserError(
        f"{path}: holds {kind}. Expected a complete checkpoint with "
        f"{_listed([kind for kind, _ in components.values()])} "
        f"for {model_type}; a component from elsewhere is named by {next(iter(lacking))}.model_name."
    )


def _other_architecture(path: Path) -> str:
    return f"If the model has an architecture of its own, describe it in {path.stem}.config/ beside the file."


def _without_ones(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (" …" if len(names) > 2 else "")


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
