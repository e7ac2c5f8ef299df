"""Hostile inputs by the thousand: each is used, or refused in words, within seconds. Nothing else."""

import contextlib
import json
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from benchmarks.torture.miniature import draw_images
from benchmarks.torture.MiniatureRun import OPTIONS
from benchmarks.torture.mutations import mutate_bytes, mutate_config, mutate_safetensors, mutate_text
from modules.dataLoader.check_dataset import check_dataset
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.embedding_file import read_embedding
from modules.trainer.checks import run_problems
from modules.util.atomic_file import write_safetensors
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.errors import ConfigError
from modules.util.config.load import load_train_config, resolve_concepts, resolve_samples
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch

from PIL import Image

# seconds after which an input counts as a hang
LONGEST = 20


class HangError(Exception):
    """An input took longer than `LONGEST`."""


@dataclass
class Tally:
    """What came of many inputs.

    Attributes:
        used, refused: how many were accepted, and refused in words.
        broken: those that ended in any other error, or in a message of more lines than it may have.
        hangs: those that took longer than `LONGEST` seconds.
        slowest: seconds of the slowest.
    """

    used: int = 0
    refused: int = 0
    broken: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def tried(self) -> int:
        return self.used + self.refused + len(self.broken) + len(self.hangs)


class Inputs:
    """Makes and tries hostile inputs of every kind.

    Args:
        folder: of its own.
        base: the miniature.
    """

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self._images = folder, folder / "images"
        draw_images(self._images)
        self._config = {
            **OPTIONS, "base_model_name": str(base), "workspace_dir": "ws", "cache_dir": "cache",
            "output_model_destination": "out.safetensors",
            "concepts": [{"path": str(self._images), "text": {}, "image": {}}],
        }  # fmt: skip
        self._adapter = _adapter_bytes(folder / "adapter.safetensors")
        self._embedding = _embedding_bytes(folder / "embedding.safetensors")
        self._pictures = [_picture(kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")]

    def config(self, rng: random.Random) -> None:
        """Options with other values: read, and checked as far as no weights are needed."""
        data, _ = mutate_config(self._config, rng)
        path = self.folder / "config.json"
        text = json.dumps(data)
        path.write_text(text if rng.random() < 0.85 else "", encoding="utf-8", errors="surrogatepass")
        if rng.random() < 0.15:
            path.write_bytes(mutate_text(text.encode("utf-8", "surrogatepass"), rng))
        # damage to the text may have changed a name, but makes no other folder of it
        with contextlib.chdir(self.folder):
            config = load_train_config(path, warn=_silent)
            problems = run_problems(config, _silent)
            if problems:
                raise UserError("\n".join(map(str, problems)))
            resolve_samples(config, warn=_silent)
            check_dataset(config, resolve_concepts(config, warn=_silent), warn=_silent, bar=False)

    def adapter(self, rng: random.Random) -> None:
        """A tensor file as an adapter or as an embedding."""
        path = self.folder / rng.choice(("x.safetensors", "x.pt", "x.bin"))
        adapter = rng.random() < 0.8
        path.write_bytes(mutate_safetensors(self._adapter if adapter else self._embedding, rng))
        if adapter:
            file = read_adapter(str(path))
            str(file.kind)
        else:
            read_embedding(str(path))

    def dataset(self, rng: random.Random) -> None:
        """Pictures, masks and captions that are damaged."""
        folder = self.folder / "hostile"
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        for number in range(rng.randint(1, 4)):
            name = rng.choice((f"{number}", f"ä {number}", f"{number}.png", f"-{number}", f"{number}\u202e"))
            ending = rng.choice((".png", ".jpg", ".webp", ".tiff", ".bmp", ".PNG", ".gif"))
            (folder / f"{name}{ending}").write_bytes(mutate_bytes(rng.choice(self._pictures), rng))
            caption = mutate_text(b"a red shape\nanother one, of two lines", rng)
            (folder / f"{name}{rng.choice(('.txt', '.caption', '.json', '.TXT'))}").write_bytes(caption)
            if rng.random() < 0.3:
                (folder / f"{name}-masklabel.png").write_bytes(mutate_bytes(rng.choice(self._pictures), rng))
        config = TrainConfig.from_dict({**self._config, "masked_training": rng.random() < 0.5, "concepts": None})
        config.cache_dir = str(self.folder / "cache")
        check_dataset(config, [ConceptConfig.from_dict({"path": str(folder)})], warn=_silent, bar=False)

    @property
    def kinds(self) -> Mapping[str, Callable[[random.Random], None]]:
        """What is made hostile -> makes one and tries it."""
        return {"configs": self.config, "adapters and embeddings": self.adapter, "images and captions": self.dataset}


def try_input(attempt: Callable[[random.Random], Any], rng: random.Random, tally: Tally, name: str) -> None:
    """Makes one input, tries it, and counts what came of it."""
    start = time.monotonic()
    try:
        with _limited():
            attempt(rng)
        tally.used += 1
    except (UserError, ConfigError) as error:
        tally.refused += 1
        if not str(error).strip():
            tally.broken.append(f"{name}: a message without words")
    except HangError:
        tally.hangs.append(name)
    # whatever else a user could be shown is what is looked for
    except Exception as error:
        tally.broken.append(f"{name}: {type(error).__name__}: {error}"[:300])
    tally.slowest = max(tally.slowest, time.monotonic() - start)


def campaign(inputs: Inputs, kind: str, count: int, seed: int) -> Tally:
    """Tries so many inputs of a kind."""
    tally = Tally()
    for number in range(count):
        try_input(inputs.kinds[kind], random.Random(f"{kind} {seed} {number}"), tally, f"{kind} {seed} {number}")
    return tally


@contextmanager
def _limited() -> Iterator[None]:
    """Raises HangError in the main thread of systems that have alarms; elsewhere nothing is limited."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _adapter_bytes(path: Path) -> bytes:
    tensors = {}
    for layer in ("lora_unet_down_blocks_0_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_mlp_fc1"):
        tensors |= {
            f"{layer}.lora_down.weight": torch.ones(4, 16), f"{layer}.lora_up.weight": torch.ones(16, 4),
            f"{layer}.alpha": torch.tensor(4.0),
        }  # fmt: skip
    write_safetensors(path, tensors, {"ss_network_dim": "4"})
    return path.read_bytes()


def _embedding_bytes(path: Path) -> bytes:
    write_safetensors(path, {"emb_params": torch.ones(2, 16)}, {"name": "lumo"})
    return path.read_bytes()


def _picture(kind: str) -> bytes:
    file = BytesIO()
    Image.linear_gradient("L").resize((48, 48)).convert("RGB").save(file, kind)
    return file.getvalue()


def _silent(text: str) -> None:
    """Warnings are not what is looked for."""
