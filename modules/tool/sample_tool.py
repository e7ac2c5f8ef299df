"""What `scripts/sample.py` does: draws images with a base model and adapters, and never overwrites one."""

import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from modules.model.BaseModel import BaseModel, family_of
from modules.model.hub import Hub, Progress
from modules.model.model_name import short_name
from modules.model.recognize_model import find_model_type
from modules.model.sample_pictures import picture_problems
from modules.modelSaver.AdapterFile import AdapterFile, read_adapter
from modules.module.AdapterSet import AdapterSet
from modules.trainer.devices import resolve_device
from modules.trainer.EmbeddingMethod import AdditionalEmbeddings
from modules.trainer.long_texts import tell_long_texts
from modules.trainer.sampling import draw_sample, make_grid
from modules.util.atomic_file import write_failure
from modules.util.config.conditioning import sample_conditioning_problems, unread_pictures
from modules.util.config.load import load_train_config, resolve_samples
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainEmbeddingConfig import TrainEmbeddingConfig
from modules.util.dtypes import autocast
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelType import ModelType
from modules.util.found_problems import raise_problems
from modules.util.UserError import UserError

import torch

from PIL import Image
from PIL.PngImagePlugin import PngInfo

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wishes:
    """What the command line asked for.

    Attributes:
        base: folder, file or hub name; None takes the config's.
        adapters: (file, strength), in the order in which they are applied.
        embeddings: (file, word in prompts that stands for it). A config's own embeddings count, too, if they are only
            used there; those that it trains come from files.
        sample: keys of `SampleConfig` that were given. Without a prompt the config's samples are drawn.
        count: images of each prompt, with seeds that count up.
        output: folder of the images.
        config: a preset or config that says what the model is; None finds it out.
        model_type: where neither a config nor the model tells.
        dtype: of weights and arithmetic. None: the config's; without one BFLOAT_16 on CUDA, FLOAT_32 elsewhere.
        device: as `train_device`; None: the config's, else the best one there is.
        prompt_chunks: as the config's; None: the config's.
        factors: of all strengths; each image is drawn with each of them, and a grid shows them beside one another.
            Empty: the strengths as they are, without a grid.
        neumann: rotations are the Neumann series, where a file does not say which they are.
    """

    base: str | None = None
    adapters: Sequence[tuple[Path, float]] = ()
    embeddings: Sequence[tuple[Path, str]] = ()
    sample: Mapping[str, Any] = field(default_factory=dict)
    count: int = 1
    output: Path = Path("workspace/images")
    config: Path | None = None
    model_type: ModelType | None = None
    dtype: DataType | None = None
    device: str | None = None
    neumann: bool = False
    prompt_chunks: int | None = None
    factors: Sequence[float] = ()


@dataclass(frozen=True)
class _Job:
    """One image: what it shows, and from which noise."""

    sample: SampleConfig
    seed: int


def draw_images(
    wishes: Wishes,
    say: Say,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_download: Progress = lambda stage, done, total: None,
) -> int:
    """Draws all images and says where they are; returns how many were left out because memory was too little.

    Args:
        wishes: of the command line.
        say: gets remarks.
        on_progress: is told of the steps of all images, done and in all.
        on_download: is told of what comes from the hub.

    Raises:
        UserError, ConfigError: something can't be read, does not fit together, or can't be written.
    """
    # what is wrong with an adapter should not wait for the model
    files = [(read_adapter(path), strength) for path, strength in wishes.adapters if strength]
    config, hub = _config(wishes, say, on_download)
    family = family_of(config)
    samples = _samples(wishes, config, family.sample_defaults, say)
    _check_pictures(wishes, config, samples, family.conditioning)
    if note := unread_pictures(config, samples, family.conditioning):
        say(f"warning: {note}")
    _make_folder(wishes.output)
    device = resolve_device(config)
    say(f"model: {config.base_model_name} ({config.model_type}) on {device}")
    model = family.load(config, device, hub)
    _add_embeddings(model, config, say)
    tell_long_texts(model, None, samples, lambda text: say(f"warning: {text}"))
    jobs = [_Job(sample, seed) for sample in samples for seed in _seeds(sample, wishes.count)]
    factors = wishes.factors or (1.0,)
    progress = _Progress(on_progress, len(factors) * sum(job.sample.diffusion_steps for job in jobs))
    drawn: dict[tuple[int, float], Image.Image | None] = {}
    with torch.no_grad(), autocast(config, device):
        for factor in factors:
            at = [(file, strength * factor) for file, strength in files if strength * factor]
            hooked = apply_adapters(model, at, samples, say, wishes.neumann)
            # text encoders, whose prompts are remembered now
            model.rest()
            for place, job in enumerate(jobs):
                picture = drawn[place, factor] = _drawn(model, job, say, progress)
                if picture is not None:
                    named = [(path, strength * factor) for path, strength in wishes.adapters]
                    text = parameters_text(job.sample, job.seed, picture, config, named)
                    path = save_image(picture, wishes.output, job.sample.prompt, job.seed, text)
                    say(f"written: {path}")
            for adapters in hooked:
                adapters.unhook()
            model.forget_prompts()
    if wishes.factors:
        say(f"written: {_save_grid(wishes, jobs, drawn)}")
    return sum(picture is None for picture in drawn.values())


class _Progress:
    """Steps of all images together."""

    def __init__(self, tell: Callable[[int, int], None], total: int) -> None:
        self._tell, self.total, self.done = tell, total, 0

    def step(self, done: int) -> None:
        """So many of the present image are done."""
        self._tell(self.done + done, self.total)

    def end(self, steps: int) -> None:
        """The present image had so many steps, and is over."""
        self.done += steps
        self._tell(self.done, self.total)


def _drawn(model: BaseModel, job: _Job, say: Say, progress: _Progress) -> Image.Image | None:
    """None if memory was too little."""
    picture = draw_sample(
        model, job.sample, job.seed, lambda text: say(f"warning: {text}"), lambda step, _: progress.step(step)
    )
    progress.end(job.sample.diffusion_steps)
    return picture


def _save_grid(wishes: Wishes, jobs: Sequence[_Job], drawn: Mapping[tuple[int, float], Image.Image | None]) -> Path:
    """A row for each image, a column for each factor."""
    rows = [
        (str(job.seed) if len(jobs) > 1 else "", [drawn[place, factor] for factor in wishes.factors])
        for place, job in enumerate(jobs)
    ]
    captions = [f"strength {factor:g}" if factor else "the model alone" for factor in wishes.factors]
    return save_image(make_grid(rows, captions), wishes.output, f"{jobs[0].sample.prompt} strengths", jobs[0].seed, "")


def apply_adapters(
    model: BaseModel,
    files: Sequence[tuple[AdapterFile, float]],
    samples: Sequence[SampleConfig],
    say: Say,
    neumann: bool = False,
) -> list[AdapterSet]:
    """Puts adapters on the model, one after the other, and encodes the prompts of `samples`. Returns what is hooked.

    Text encoders come first, so that they can be freed before the denoiser is loaded.

    Args:
        model: without adapters.
        files: adapters and their strengths, see `AdapterSet.from_parts`.
        samples: whose prompts are encoded and remembered.
        say: gets remarks.
        neumann: see `Wishes`.

    Raises:
        UserError: an adapter does not fit the model.
    """
    naming = model.adapter_naming()
    fitted, hooked = [], []
    for file, strength in files:
        if file.extra:
            say(f"warning: {file.path}: embeddings in it are left out ({len(file.extra)} tensors).")
        # shapes tell whether it fits; only scales that are made for another reader need weights
        known = {component: model.layers_of(component) for component in model.trainable_components}
        layers = file.fit(naming, model.components if file.base_norm else known, lambda text: say(f"warning: {text}"))
        fitted.append((layers, _neumann(file, neumann, say), strength))
    denoiser = model.trainable_components[0]
    for component in sorted(model.trainable_components, key=lambda name: name == denoiser):
        if component == denoiser:
            for sample in samples:
                model.prompts(sample)
            model.rest()
        for layers, series, strength in fitted:
            if component in layers:
                adapters = AdapterSet.from_parts(
                    component, model.components[component], layers[component], series, strength
                )
                adapters.to(model.device).eval().hook()
                hooked.append(adapters)
    return hooked


def parameters_text(
    sample: SampleConfig, seed: int, picture: Image.Image, config: TrainConfig, adapters: Sequence[tuple[Path, float]]
) -> str:
    """The settings of an image as image viewers and web interfaces show them, in the field `parameters` of a PNG."""
    names = [f"{path.stem}: {strength:g}" for path, strength in adapters if strength]
    settings = {
        "Steps": sample.diffusion_steps,
        "Sampler": sample.noise_scheduler,
        "CFG scale": f"{sample.cfg_scale:g}",
        "Seed": seed,
        "Size": f"{picture.width}x{picture.height}",
        "Model": short_name(config.base_model_name),
    }
    words = [f"{own.placeholder}: {Path(own.model_name).stem}" for own in config.additional_embeddings]
    for kind, found in (("Adapters", names), ("Embeddings", words)):
        if found:
            settings[kind] = '"' + ", ".join(found) + '"'
    lines = [sample.prompt]
    if sample.negative_prompt:
        lines.append(f"Negative prompt: {sample.negative_prompt}")
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in settings.items())])


def save_image(picture: Image.Image, folder: Path, prompt: str, seed: int, parameters: str) -> Path:
    """Writes a PNG under a name that no file has yet: `<words of the prompt>-<seed>(-<number>).png`."""
    words = re.sub(r"[^\w\- ]", "", prompt)[:60].strip() or "image"
    info = PngInfo()
    info.add_text("parameters", parameters)
    for number in count(1):
        path = folder / (f"{words}-{seed}.png" if number == 1 else f"{words}-{seed}-{number}.png")
        try:
            # of two programs that want a name only one gets it
            with open(path, "xb") as file:
                picture.save(file, "PNG", pnginfo=info)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise write_failure(path, error) from error
    raise AssertionError("numbers do not end")


def _config(wishes: Wishes, say: Say, on_download: Progress) -> tuple[TrainConfig, Hub]:
    if wishes.config is not None:
        config = load_train_config(wishes.config, warn=lambda text: say(f"warning: {text}"))
    else:
        config = TrainConfig()
    config.base_model_name = wishes.base or config.base_model_name
    if wishes.prompt_chunks is not None:
        config.prompt_chunks = wishes.prompt_chunks
    # or the model would not put its components away
    config.latent_caching = True
    config.train_device = wishes.device or config.train_device
    used = [own for own in config.additional_embeddings if not own.train]
    config.additional_embeddings = used + [
        TrainEmbeddingConfig(model_name=str(path), placeholder=word, token_count=None, train=False)
        for path, word in wishes.embeddings
    ]
    hub = Hub(config, on_download, lambda text: say(f"warning: {text}"))
    if wishes.model_type is not None:
        config.model_type = wishes.model_type
    elif wishes.config is None:
        config.model_type = find_model_type(config, hub)
    dtype = wishes.dtype
    if dtype is None and wishes.config is None:
        dtype = DataType.BFLOAT_16 if resolve_device(config).type == "cuda" else DataType.FLOAT_32
    if dtype is not None:
        config.weight_dtype = config.train_dtype = dtype
        for component in family_of(config).modules:
            # the VAE's decoder overflows in half precision with some models, and is small
            getattr(config, component).weight_dtype = DataType.FLOAT_32 if component == "vae" else DataType.NONE
    return config, hub


def _add_embeddings(model: BaseModel, config: TrainConfig, say: Say) -> None:
    method = AdditionalEmbeddings()
    if method.applies(config):
        method.check_words(config)
        method.check_output(model, config, say)
        method.prepare(model, config, (), say)


def _samples(wishes: Wishes, config: TrainConfig, defaults: Mapping[str, Any], say: Say) -> list[SampleConfig]:
    if wishes.sample.get("prompt") is not None:
        return [SampleConfig.from_dict({**defaults, **wishes.sample})]
    found = resolve_samples(config, defaults, warn=lambda text: say(f"warning: {text}"))
    # a seed that was asked for is one that was not left to chance
    given = {**wishes.sample, **({"random_seed": False} if "seed" in wishes.sample else {})}
    samples = [SampleConfig.from_dict({**sample.to_dict(), **given}) for sample in found if sample.enabled]
    if not samples:
        raise UserError(f"{wishes.config}: has no samples. Give --prompt.")
    return samples


def _check_pictures(
    wishes: Wishes, config: TrainConfig, samples: Sequence[SampleConfig], source: ConditioningSource
) -> None:
    """UserError if the command line names an image that would not be used, or one is missing or can't be used."""
    if wishes.sample.get("base_image_path"):
        if source == ConditioningSource.NONE:
            raise UserError(f"--image: {config.model_type} draws from no image. Leave it out.")
        if source == ConditioningSource.MASK and not all(sample.sample_inpainting for sample in samples):
            raise UserError(f"--image: {config.model_type} fills masks of images. Give --mask, too.")
    if wishes.sample.get("mask_image_path") and source != ConditioningSource.MASK:
        raise UserError(f"--mask: {config.model_type} fills no masks. Leave it out.")
    raise_problems(sample_conditioning_problems(config, samples, source))
    raise_problems(picture_problems(samples, source))


def _seeds(sample: SampleConfig, number: int) -> range:
    first = random.SystemRandom().randrange(2**32) if sample.random_seed else sample.seed
    return range(first, first + number)


def _neumann(file: AdapterFile, wanted: bool, say: Say) -> bool:
    if not file.kind.file_kind.rotates:
        return False
    if file.neumann is None:
        taken = "the Neumann series, by --neumann" if wanted else "exact; for OneTrainer's files give --neumann"
        say(f"note: {file.path} does not say how its rotations were computed; they are taken as {taken}.")
        return wanted
    return file.neumann


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "no permission")
    except OSError as error:
        raise write_failure(folder, error) from error
