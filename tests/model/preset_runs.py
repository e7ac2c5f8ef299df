"""Short runs of shipped presets, and whether what they wrote is what they trained."""

import json
import math
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules.model.BaseModel import BaseModel, family_of
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.embedding_file import read_embedding
from modules.module.AdapterSet import AdapterSet
from modules.trainer.EmbeddingSet import EmbeddingSet
from modules.trainer.events import TrainCommands, TrainEvents
from modules.trainer.Trainer import Trainer
from modules.util.config.load import load_train_config, resolve_concepts, train_config_from_dict
from modules.util.config.TrainConfig import TrainConfig
from modules.util.dtypes import FLOAT_DTYPES
from modules.util.enum.ConceptType import ConceptType
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelType import ModelType
from tests.model.preset_table import ROOT

import torch
from torch import Tensor

from PIL import Image

CPU = torch.device("cpu")
# layers of the small models on which nothing depends, so that no adapter there moves, and joined files leave it out: of
# the last block's text nothing comes out
IDLE = {
    ModelType.STABLE_DIFFUSION_35: re.compile(r"transformer_blocks\.1\.attn\.add_q_proj"),
    **dict.fromkeys(
        (ModelType.QWEN, ModelType.QWEN_EDIT),
        re.compile(r"transformer_blocks\.1\.(attn\.(add_q_proj|to_add_out)|txt_mlp\..+)"),
    ),
}
NOTHING = re.compile(r"(?!)")
# least numbers of images and of steps
IMAGES, STEPS = 4, 1
# share of a change that the file's dtype may lose: its rounding a few times, and once more where layers are joined
LOST = {DataType.FLOAT_32: 1e-5, DataType.FLOAT_16: 2e-3, DataType.BFLOAT_16: 1e-2}


@dataclass
class ShortRun:
    """A preset's run that is over.

    Attributes:
        config: that it had.
        trainer: with the model as it was trained.
        losses: of each step.
        warnings: that it gave.
    """

    config: TrainConfig
    trainer: Trainer
    losses: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def output(self) -> Path:
        return Path(self.config.output_model_destination)


def draw_concept(folder: Path, count: int, pairs: bool = False) -> Path:
    """Images of one size, with one caption, as each is encoded with hundreds of tokens; each beside a conditioning
    image, if wanted."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        gradient = Image.linear_gradient("L").resize((48, 48)).rotate(90 * index)
        image = Image.merge("RGB", [gradient, gradient.point(lambda v, i=index: v * (i + 2) % 256), gradient])
        image.save(folder / f"{index}.png")
        if pairs:
            image.rotate(180).save(folder / f"{index}-condlabel.png")
        (folder / f"{index}.txt").write_text("a red shape", encoding="utf-8")
    return folder


def own_concepts(config: TrainConfig, folder: Path) -> list[dict[str, Any]]:
    """The concepts that a preset names, with their own options and a few of their images."""
    concepts, found = resolve_concepts(config, warn=lambda text: None), []
    training = [concept for concept in concepts if concept.type == ConceptType.STANDARD]
    for concept in concepts:
        count = math.ceil(IMAGES / len(training)) if concept in training else 1
        images = sorted(path for path in Path(concept.path).iterdir() if path.suffix in (".png", ".jpg", ".webp"))
        target = folder / concept.name
        target.mkdir(parents=True)
        for image in images[:count]:
            for path in (image, image.with_suffix(".txt")):
                shutil.copyfile(path, target / path.name)
        found.append({**concept.to_dict(), "path": str(target)})
    return found


def short_options(preset: Path, folder: Path, cache: Path, base: Path | None) -> dict[str, Any]:
    """The preset's JSON, with what a short run in folders of its own has otherwise.

    Args:
        preset: its file.
        folder: gets workspace, output and images.
        cache: of latents and captions; runs of one base share it.
        base: stands for the base model; None: the preset's own, of which the images are, too.
    """
    options = json.loads(preset.read_text(encoding="utf-8"))
    config = load_train_config(preset, warn=lambda text: None)
    changes = {
        "workspace_dir": str(folder / "workspace"), "cache_dir": str(cache), "clear_cache_before_training": False,
        "output_model_destination": str(folder / "out" / Path(config.output_model_destination).name),
        # both are the CPU's memory, but to layers that wait they are two
        "train_device": "cpu", "temp_device": "cpu:0", "tensorboard": False,
        # one that is longer than the run would leave it without a step
        "learning_rate_warmup_steps": 0,
    }  # fmt: skip
    if base is not None:
        images = config.batch_size * min(2, max(1, IMAGES // config.batch_size))
        concept = {"path": str(draw_concept(folder / "concept", images, config.custom_conditioning_image))}
        batches = images // config.batch_size
        # scaled steps are small in a stand-in that is far narrower than the model: rounding would be as large
        larger = 10 if config.optimizer.scaled_optm else 1
        # it has all components itself
        own = {
            name: {**value, "model_name": ""}
            for name, value in options.items()
            if isinstance(value, dict) and "model_name" in value
        }
        return options | changes | own | {
            "learning_rate": larger * config.learning_rate,
            "base_model_name": str(base), "resolution": "32", "concepts": [concept], "samples": [],
            "epochs": math.ceil(STEPS * config.gradient_accumulation_steps / batches),
        }  # fmt: skip
    options.pop("concept_file_name", None)
    sample = {**options["samples"][0], "diffusion_steps": 1}
    return options | changes | {
        "base_model_name": str(ROOT / config.base_model_name), "concepts": own_concepts(config, folder / "concepts"),
        "samples": [sample], "epochs": 1, "batch_size": 2, "sample_after": 1, "validate_after": 1,
    }  # fmt: skip


def run(options: dict[str, Any]) -> ShortRun:
    config = train_config_from_dict(options)
    found = ShortRun(config, None)  # type: ignore[arg-type] - it tells what it does while it is made

    def listen(kind: str, values: dict[str, Any]) -> None:
        if kind == "step":
            found.losses.append(values["loss"])
        if kind == "warning":
            found.warnings.append(values["text"])

    found.trainer = Trainer(config, TrainEvents([listen]), TrainCommands())
    assert found.trainer.run()["finished"]
    return found


def check_written(done: ShortRun) -> None:
    """AssertionError unless the output loads and holds what was trained, which must have changed something."""
    sets = done.trainer.trained
    if all(isinstance(own, AdapterSet) for own in sets.values()):
        _check_adapter(done)
    elif any(isinstance(own, EmbeddingSet) for own in sets.values()):
        _check_embedding(done)
    else:
        _check_model(done)


def _check_adapter(done: ShortRun) -> None:
    model = done.trainer.model
    layers = read_adapter(done.output).fit(model.adapter_naming(), model.components)
    assert layers.keys() == done.trainer.trained.keys()
    for component, trained in done.trainer.trained.items():
        neumann = bool(done.config.oft_cayley_neumann)
        again = AdapterSet.from_parts(component, model.components[component], layers[component], neumann)
        idle = IDLE.get(done.config.model_type, NOTHING)
        assert {name for name in trained.adapters if not idle.fullmatch(name)} <= again.adapters.keys()
        assert again.adapters.keys() <= trained.adapters.keys()
        for name, adapter in trained.adapters.items():
            expected = adapter.merged_delta()
            if idle.fullmatch(name):
                # roundings at most
                assert expected.norm() < 1e-3, name
            else:
                _check_equal(again.adapters[name].merged_delta(), expected, done.config, f"{component}.{name}")


def _check_equal(found: Tensor, expected: Tensor, config: TrainConfig, name: str) -> None:
    size = expected.norm()
    assert expected.isfinite().all() and size > 0, f"{name} was not trained"
    assert (found - expected).norm() <= LOST[config.output_dtype] * size, name


def _check_embedding(done: ShortRun) -> None:
    (trained,) = done.trainer.trained.values()
    written = read_embedding(done.output)
    assert written.keys() == trained.tensors().keys()
    assert all(torch.equal(written[key], tensor.float()) for key, tensor in trained.tensors().items())
    model, text = done.trainer.model, done.config.embedding.initial_embedding_text
    for component, raw in zip(model.embedding_keys, trained.parameters(), strict=True):
        start = model.added_words[component].vectors_of(model.components[component], text)
        assert raw.isfinite().all() and not torch.equal(raw, start[: len(raw)])


def _check_model(done: ShortRun) -> None:
    """The trained components are in the file, in its dtype, and differ from the base's."""
    again, before = reloaded(done.config, done.output), family_of(done.config).load(done.config, CPU)
    for component, own in done.trainer.trained.items():
        names = {name.removeprefix(f"{component}.") for name in own.state_dict()}
        trained, found, base = (
            model.components[component].state_dict() for model in (done.trainer.model, again, before)
        )
        assert names and names <= found.keys()
        moved = 0
        for name, tensor in found.items():
            written = trained[name].to(FLOAT_DTYPES[done.config.output_dtype])
            assert tensor.isfinite().all() and torch.equal(tensor.float(), written.float()), name
            moved += name in names and not torch.equal(trained[name], base[name])
        # a step may be less than the last digit of all of a bfloat16 tensor's numbers, above all of norms, which are 1
        assert moved > 0.8 * len(names), f"{moved} of {len(names)}"


def reloaded(config: TrainConfig, output: Path) -> BaseModel:
    """The model that a run wrote, as the base of another one."""
    place: dict[str, Any] = {"base_model_name": str(output)}
    # of such families a file holds the transformer alone
    if family_of(config).trainable_components[0] == "transformer" and output.is_file():
        place = {"transformer": config.transformer.model_copy(update={"model_name": str(output)})}
    changed = config.model_copy(update=place)
    return family_of(changed).load(changed, CPU)
