"""A workflow for ComfyUI that draws with a trained adapter, from the config that trained it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.model.families import facts_of
from modules.modelSaver.adapter_layout import is_text_layer
from modules.modelSaver.AdapterFile import AdapterFile, read_adapter
from modules.tool.comfy_recipes import Recipe, recipe_of
from modules.tool.ComfyGraph import NODE_TYPES, ComfyGraph, Output
from modules.util.atomic_file import write_json
from modules.util.config.load import resolve_samples
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.UserError import UserError

SINGLE_FILES = (".safetensors", ".ckpt", ".pth", ".sft")
LOADERS = {1: "CLIPLoader", 2: "DualCLIPLoader", 3: "TripleCLIPLoader", 4: "QuadrupleCLIPLoader"}
FIXED, DEVICE, WEIGHTS = "fixed", "default", "default"


@dataclass(frozen=True)
class Models:
    """What the loaders give, with the adapter in it."""

    model: Output
    clip: Output
    vae: Output


def write_workflow(
    config: TrainConfig, adapter: Path, target: Path, overwrite: bool, say: Callable[[str], None]
) -> None:
    """Writes a workflow that ComfyUI opens when the file is dropped onto its window.

    Args:
        config: that trained the adapter: its model type, base model and first sample.
        adapter: the file; ComfyUI looks for its name in `models/loras`.
        target: the JSON file to write.
        overwrite: whether a file that is there may be replaced.
        say: gets what is to be done by hand.

    Raises:
        UserError: the adapter can't be read, ComfyUI can't draw with the model, or the file exists.
        OSError: it can't be written.
    """
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists. Choose another name, or give --overwrite.")
    read = read_adapter(adapter)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, workflow(config, read, _first_sample(config)))
    for line in by_hand(config, read):
        say(line)


def workflow(config: TrainConfig, adapter: AdapterFile, sample: SampleConfig) -> dict[str, Any]:
    """The workflow as JSON, in the form in which ComfyUI saves it.

    Args:
        config: that trained the adapter.
        adapter: as it was read; its path gives the name.
        sample: what is drawn.

    Raises:
        UserError: ComfyUI can't draw with the model.
    """
    recipe, graph = recipe_of(config.model_type, config.base_model_name), ComfyGraph()
    models = _adapted(graph, adapter, _loaded(graph, config, recipe))
    graph.add("Note", 0, ("\n".join(by_hand(config, adapter)),))
    if recipe.shift is not None:
        kind, value = recipe.shift
        (shifted,) = graph.add(kind, 1, (value,), model=models.model)
        models = Models(shifted, models.clip, models.vae)
    shown = _picture(graph) if recipe.reader else None
    positive = _text(graph, recipe, models, sample, sample.prompt, shown)
    # a model that is told the guidance is called without a negative prompt; KSampler takes one in any case
    if not recipe.told:
        negative = _text(graph, recipe, models, sample, sample.negative_prompt, shown)
    elif recipe.schedule_of_size:
        negative = positive
    else:
        (negative,) = graph.add("ConditioningZeroOut", 2, conditioning=positive)
    conditioning = facts_of(config.model_type).conditioning
    latent: Output | None = None
    if conditioning == ConditioningSource.MASK:
        positive, negative, latent = _filled(graph, models, positive, negative)
    elif conditioning == ConditioningSource.FILE:
        positive, latent = _edited(graph, models, positive, shown)
    if recipe.told:
        (positive,) = graph.add("FluxGuidance", 2, (sample.cfg_scale,), conditioning=positive)
    if latent is None:
        (latent,) = graph.add(recipe.latent, 3, (sample.width, sample.height, 1))
    drawn = _sampled(graph, recipe, sample, models, positive, negative, latent)
    (image,) = graph.add("VAEDecode", 4, samples=drawn, vae=models.vae)
    graph.add("SaveImage", 4, (Path(adapter.path).stem,), images=image)
    return graph.to_json()


def by_hand(config: TrainConfig, adapter: AdapterFile) -> list[str]:
    """What ComfyUI needs beside the workflow, a line each.

    Raises:
        UserError: ComfyUI can't draw with the model.
    """
    recipe = recipe_of(config.model_type, config.base_model_name)
    whole = not recipe.vae
    lines = [f"{Path(adapter.path).name}: copy it into ComfyUI's models/loras."]
    if _needs_node(adapter):
        lines.append("Copy the folder comfyui of the trainer into ComfyUI's custom_nodes: it loads rotations (OFT).")
    folder = "checkpoints" if whole else "diffusion_models"
    lines.append(f"models/{folder}: {_denoiser(config, recipe)}, or choose the file that you have in its loader.")
    if recipe.texts:
        lines.append(f"models/text_encoders: {', '.join(recipe.texts)}")
    if recipe.vae:
        lines.append(f"models/vae: {recipe.vae}")
    return lines


def _first_sample(config: TrainConfig) -> SampleConfig:
    """What the run draws first; the family's usual size where it draws nothing."""
    facts = facts_of(config.model_type)
    defaults = dict(facts.sample_defaults) if facts else {}
    try:
        samples = [one for one in resolve_samples(config, defaults, warn=lambda text: None) if one.enabled]
    except (UserError, OSError):
        # a file of samples that is not there keeps nobody from drawing
        samples = []
    return samples[0] if samples else SampleConfig.from_dict(defaults)


def _denoiser(config: TrainConfig, recipe: Recipe) -> str:
    """The config's own file, if it names one; else that under whose name the model is published."""
    own = config.transformer.model_name or config.unet.model_name or config.base_model_name
    return Path(own).name if own.lower().endswith(SINGLE_FILES) else recipe.denoiser


def _needs_node(adapter: AdapterFile) -> bool:
    return adapter.kind.file_kind.rotates and bool(adapter.kind.file_kind.comfy_remark(adapter.kind.dora))


def _loaded(graph: ComfyGraph, config: TrainConfig, recipe: Recipe) -> Models:
    name = _denoiser(config, recipe)
    if recipe.vae:
        (model,) = graph.add("UNETLoader", 0, (name, WEIGHTS))
        clip, vae = None, None
    else:
        model, clip, vae = graph.add("CheckpointLoaderSimple", 0, (name,))
    if recipe.texts:
        count = len(recipe.texts)
        extra = (recipe.text_type, DEVICE) if count < 3 else ()
        (clip,) = graph.add(LOADERS[count], 0, (*recipe.texts, *extra))
    if recipe.vae:
        (vae,) = graph.add("VAELoader", 0, (recipe.vae,))
    return Models(model, clip, vae)


def _adapted(graph: ComfyGraph, adapter: AdapterFile, models: Models) -> Models:
    name = Path(adapter.path).name
    if _needs_node(adapter):
        neumann = bool(adapter.neumann)
        model, clip = graph.add(
            "LoadOFTRotation", 1, (name, 1.0, 1.0, neumann), model=models.model, clip=models.clip
        )  # fmt: skip
    elif any(map(is_text_layer, adapter.layers)):
        model, clip = graph.add("LoraLoader", 1, (name, 1.0, 1.0), model=models.model, clip=models.clip)
    else:
        (model,) = graph.add("LoraLoaderModelOnly", 1, (name, 1.0), model=models.model)
        clip = models.clip
    return Models(model, clip, models.vae)


def _text(
    graph: ComfyGraph, recipe: Recipe, models: Models, sample: SampleConfig, text: str, shown: Output | None
) -> Output:
    if shown is not None:
        # the node's last input is its first picture
        *_, picture = NODE_TYPES[recipe.reader].inputs
        return graph.add(recipe.reader, 2, (text,), clip=models.clip, vae=models.vae, **{picture: shown})[0]
    if recipe.sized:
        widgets: tuple[Any, ...] = (sample.width, sample.height, text)
        return graph.add("CLIPTextEncodePixArtAlpha", 2, widgets, clip=models.clip)[0]
    return graph.add("CLIPTextEncode", 2, (text,), clip=models.clip)[0]


def _filled(graph: ComfyGraph, models: Models, positive: Output, negative: Output) -> tuple[Output, Output, Output]:
    """The area of a picture that was painted over in the node that loads it."""
    image, mask = graph.add("LoadImage", 3, ("example.png", "image"))
    found = graph.add(
        "InpaintModelConditioning", 3, (True,), positive=positive, negative=negative, vae=models.vae, pixels=image,
        mask=mask,
    )  # fmt: skip
    return found[0], found[1], found[2]


def _picture(graph: ComfyGraph) -> Output:
    """The one that is to be edited, in a size that such models are made for."""
    image, _ = graph.add("LoadImage", 3, ("example.png", "image"))
    return graph.add("FluxKontextImageScale", 3, image=image)[0]


def _edited(graph: ComfyGraph, models: Models, positive: Output, shown: Output | None) -> tuple[Output, Output]:
    """A picture that is changed as the prompt says; `shown` if the prompt's node has it already."""
    scaled = _picture(graph) if shown is None else shown
    (latent,) = graph.add("VAEEncode", 3, pixels=scaled, vae=models.vae)
    if shown is not None:
        return positive, latent
    return graph.add("ReferenceLatent", 3, conditioning=positive, latent=latent)[0], latent


def _sampled(
    graph: ComfyGraph, recipe: Recipe, sample: SampleConfig, models: Models, positive: Output, negative: Output,
    latent: Output,
) -> Output:  # fmt: skip
    if not recipe.schedule_of_size:
        scale = 1.0 if recipe.told else sample.cfg_scale
        widgets = (sample.seed, FIXED, sample.diffusion_steps, scale, recipe.sampler, recipe.scheduler, 1.0)
        return graph.add(
            "KSampler", 4, widgets, model=models.model, positive=positive, negative=negative, latent_image=latent
        )[0]
    (noise,) = graph.add("RandomNoise", 3, (sample.seed, FIXED))
    (sampler,) = graph.add("KSamplerSelect", 3, (recipe.sampler,))
    (sigmas,) = graph.add("Flux2Scheduler", 3, (sample.diffusion_steps, sample.width, sample.height))
    if recipe.told:
        (guider,) = graph.add("BasicGuider", 3, model=models.model, conditioning=positive)
    else:
        (guider,) = graph.add(
            "CFGGuider", 3, (sample.cfg_scale,), model=models.model, positive=positive, negative=negative
        )
    return graph.add(
        "SamplerCustomAdvanced", 4, noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent
    )[0]
