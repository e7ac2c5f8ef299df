"""What steps wait for data: batches that are read by the step itself against batches that are read ahead in threads.

Data and cache are those of a training. Model and step are not: the model encodes in no time, and a step is a small
adapter's and then sleeps, as a program does that waits for its GPU.
"""

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modules.dataLoader.Batch import Batch
from modules.dataLoader.check_dataset import check_dataset
from modules.dataLoader.Feed import Feed
from modules.dataLoader.ImageSource import ImageSource
from modules.dataLoader.plan import PlannedBatch, PlanRules
from modules.dataLoader.prepare_data import prepare_data
from modules.dataLoader.TensorCache import TensorCache
from modules.dataLoader.TensorStore import TensorStore
from modules.dataLoader.TrainingData import TrainingData
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConditioningSource import ConditioningSource

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from PIL import Image

LATENT = (4, 128, 128)
EDGE = 128
RANK, WIDTH = 4, 64
Texts = dict[str, tuple[tuple[int, ...], torch.dtype]]
# name -> what an encoded caption is made of
CAPTIONS: dict[str, Texts] = {
    "SDXL": {"hidden": ((77, 2048), torch.float32), "pooled": ((1280,), torch.float32)},
    "Flux.2 dev": {"hidden": ((512, 15360), torch.bfloat16)},
}


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        captions: a name of `CAPTIONS`.
        pictures: how many there are.
        batch: pictures in a batch.
        step_seconds: of a step that has its batch.
        threads: that read ahead; 0: the step reads by itself.
        memory_share: of the data that may stay in memory.
        passes: over the pictures. In the first, checksums are verified.
    """

    captions: str = "SDXL"
    pictures: int = 1000
    batch: int = 4
    step_seconds: float = 0.05
    threads: int = 2
    memory_share: float = 0.1
    passes: int = 2

    @property
    def entry_bytes(self) -> int:
        """Of a picture and its caption."""
        shapes = [(LATENT, torch.float32), *CAPTIONS[self.captions].values()]
        return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in shapes)


class QuickModel:
    """Encodes to tensors of the real size, in no time: each differs from others by an added number."""

    image_grid = 64
    conditioning = ConditioningSource.NONE
    captions_see_conditioning = False

    def __init__(self, captions: str) -> None:
        self._captions, generator = captions, torch.Generator().manual_seed(0)
        self._texts = {
            name: torch.rand(shape, generator=generator).to(dtype)
            for name, (shape, dtype) in CAPTIONS[captions].items()
        }

    def encode_images(self, pixels: Tensor) -> Tensor:
        channels = torch.cat([pixels, pixels.mean(1, keepdim=True)], 1)
        return interpolate(channels, size=LATENT[1:])

    def encode_captions(self, captions: list[str]) -> dict[str, Tensor]:
        numbers = [int(hashlib.sha256(caption.encode()).hexdigest()[:4], 16) / 2**16 for caption in captions]
        return {name: torch.stack([text + number for number in numbers]) for name, text in self._texts.items()}

    def image_fingerprint(self) -> str:
        return "quick"

    def text_fingerprint(self) -> str:
        return f"quick {self._captions}"

    def rest(self) -> None:
        """There is nothing to put away."""


class Learner:
    """A low-rank adapter that learns latents from captions, by a few numbers of each."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.down = torch.randn(RANK, WIDTH, generator=generator).requires_grad_()
        self.up = torch.zeros(WIDTH, RANK).requires_grad_()
        self._optimizer = torch.optim.SGD([self.down, self.up], 1e-2)

    def step(self, batch: Batch) -> None:
        text = batch.text["hidden"].flatten(1)
        given = text[:, :: text.shape[1] // WIDTH][:, :WIDTH].float()
        wanted = batch.latents.flatten(1)
        wanted = wanted[:, :: wanted.shape[1] // WIDTH][:, :WIDTH]
        loss = (given @ self.down.T @ self.up.T - wanted).square().mean()
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def digest(self) -> str:
        """sha256 of its numbers."""
        return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in (self.down, self.up))).hexdigest()


def draw_pictures(folder: Path, count: int) -> None:
    """Pictures that differ in their shade, each with a caption of its own."""
    folder.mkdir(parents=True)
    for number in range(count):
        shade = tuple((number >> bit) % 16 * 16 for bit in (0, 4, 8))
        Image.new("RGB", (EDGE, EDGE), shade).save(folder / f"{number:05}.png", compress_level=1)
        (folder / f"{number:05}.txt").write_text(f"picture number {number}", encoding="utf-8")


class Data:
    """Pictures whose cache is complete; `fresh` reads them as a new program would."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        pictures = folder / f"{setting.pictures} pictures"
        if not pictures.exists():
            draw_pictures(pictures, setting.pictures)
        self._setting, self._model = setting, QuickModel(setting.captions)
        self._concepts = [ConceptConfig.from_dict({"path": str(pictures)})]
        cache = folder / f"cache {setting.captions}"
        options = {"resolution": str(EDGE), "batch_size": setting.batch, "cache_dir": str(cache)}
        self._config = TrainConfig.from_dict({**options, "clear_cache_before_training": False, "data_memory": 0.0})
        self._images = check_dataset(self._config, self._concepts, warn=_silent)
        prepare_data(
            self._config, self._concepts, self._model, cache_text=True, report=self._images, warn=_silent
        )  # fmt: skip

    def fresh(self) -> TrainingData:
        config, setting = self._config, self._setting
        source = ImageSource(config, self._concepts, self._images.images, self._model.image_grid)
        budget = int(setting.memory_share * setting.pictures * setting.entry_bytes)
        store = TensorStore(TensorCache(config.cache_dir, _silent), budget)
        rules = PlanRules(seed=config.seed, batch_size=setting.batch)
        return TrainingData(config, source, self._model, store, rules=rules, encode_text=True)


def _silent(text: str) -> None:
    """Warnings of pictures that are drawn for a measurement are of no use."""


def train(data: TrainingData, setting: Setting) -> dict[str, Any]:
    """Trains with batches that are read ahead, or with `threads` 0 by the step itself.

    Returns:
        for each pass: `seconds`; `waiting_seconds` and `waiting_share` (0 to 1), in which the data was not ready;
        `asking_ms_per_step`, which has also what other programs take of the core while the step asks for its batch;
        `processor_ms_per_step` of all threads; and `adapter`, its hash.
    """
    planned = [batch for epoch in range(setting.passes) for batch in data.plan(epoch)]
    steps = len(planned) // setting.passes
    learner, passes = Learner(), []
    ahead = Feed(data, planned.__getitem__, len(planned), setting.threads, torch.device("cpu"))
    feed = ahead if setting.threads else _Unfed(data, planned)
    with feed:
        for start in range(0, len(planned), steps):
            passes.append(_pass(range(start, start + steps), feed, learner, setting.step_seconds))
    return {"passes": passes, "adapter": learner.digest()}


class _Unfed(nullcontext):
    """Reads each batch when it is asked for."""

    def __init__(self, data: TrainingData, planned: list[PlannedBatch]) -> None:
        super().__init__()
        self._data, self._planned, self.waited = data, planned, 0.0

    def batch(self, number: int) -> Batch:
        started = time.perf_counter()
        batch = self._data.load(self._planned[number])
        self.waited += time.perf_counter() - started
        return batch


def _pass(numbers: range, feed: Feed | _Unfed, learner: Learner, step_seconds: float) -> dict[str, float]:
    begun, processor, waited, asking = time.perf_counter(), time.process_time(), feed.waited, 0.0
    for number in numbers:
        started = time.perf_counter()
        batch = feed.batch(number)
        ready = time.perf_counter()
        asking += ready - started
        learner.step(batch)
        time.sleep(max(0.0, ready + step_seconds - time.perf_counter()))
    seconds, waiting = time.perf_counter() - begun, feed.waited - waited
    return {
        "steps": len(numbers),
        "seconds": seconds,
        "waiting_seconds": waiting,
        "waiting_share": waiting / seconds,
        "waiting_ms_per_step": 1e3 * waiting / len(numbers),
        "asking_ms_per_step": 1e3 * asking / len(numbers),
        "processor_ms_per_step": 1e3 * (time.process_time() - processor) / len(numbers),
    }


def measure(setting: Setting, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """A setting read by the step itself and read ahead, in turns of whole trainings from a new program's view."""
    say(f"{setting.captions}: {setting.pictures} pictures of {setting.entry_bytes / 1e6:.1f} MB")
    data = Data(folder, setting)
    found = {
        name: train(data.fresh(), each)
        for name, each in (("by the step", replace(setting, threads=0)), ("ahead", setting))
    }  # fmt: skip
    for name, result in found.items():
        for number, one in enumerate(result["passes"], 1):
            say(
                f"  {name}, pass {number}: waiting {one['waiting_share']:.1%}, {one['waiting_ms_per_step']:.2f} ms a "
                f"step ({one['asking_ms_per_step']:.1f} with other programs), "
                f"processor {one['processor_ms_per_step']:.1f} ms a step"
            )
    same = found["by the step"]["adapter"] == found["ahead"]["adapter"]
    say(f"  the trained adapters are {'the same' if same else 'DIFFERENT'}")
    return {
        "captions": setting.captions, "pictures": setting.pictures, "batch": setting.batch,
        "step_seconds": setting.step_seconds, "threads": setting.threads, "memory_share": setting.memory_share,
        "entry_bytes": setting.entry_bytes, "same_adapter": same, "load_average": os.getloadavg()[0], **found,
    }  # fmt: skip
