"""Small real image files, and a model that encodes by averaging pixels."""

import hashlib
from pathlib import Path

from modules.dataLoader.check_dataset import check_dataset
from modules.dataLoader.prepare_data import prepare_data
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConditioningSource import ConditioningSource

import torch

import pytest
from PIL import Image


class PoolingModel:
    """Encodes an image to the means of its 8 x 8 blocks, and a caption to numbers made from its hash."""

    image_grid = 16
    conditioning = ConditioningSource.NONE
    captions_see_conditioning = False

    def __init__(self, name: str = "pool", fail_after: int | None = None) -> None:
        self.name = name
        self.images = 0
        self.captions: list[str] = []
        self.fail_after = fail_after
        self.rests = 0

    def encode_images(self, pixels):
        assert pixels.dtype == torch.float32 and pixels.shape[1] == 3 and pixels.abs().max() <= 1
        assert pixels.shape[2] % self.image_grid == 0 and pixels.shape[3] % self.image_grid == 0
        if self.fail_after is not None and self.images >= self.fail_after:
            raise KeyboardInterrupt
        self.images += len(pixels)
        pooled = torch.nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([pooled, pooled.mean(1, keepdim=True)], 1)

    def encode_captions(self, captions):
        self.captions += captions
        rows = [list(hashlib.sha256(caption.encode()).digest()[:6]) for caption in captions]
        return {"hidden": torch.tensor(rows, dtype=torch.float32).reshape(-1, 2, 3), "tokens": torch.tensor(rows)}

    def image_fingerprint(self):
        return f"{self.name}-image"

    def text_fingerprint(self):
        return f"{self.name}-text"

    def rest(self):
        self.rests += 1


def draw(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture without symmetry, other for each seed."""
    x, y = torch.arange(width)[None], torch.arange(height)[:, None]
    planes = [x * 5 + y * 2 + seed * 31, x * 2 + y * 7 + seed * 57, x + y + seed * 11]
    return Image.fromarray(torch.stack([plane % 256 for plane in planes], -1).to(torch.uint8).numpy())


class Dataset:
    """A folder of images with captions, and the config to train on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "images"
        self.folder.mkdir()
        self.warnings: list[str] = []
        self.model = PoolingModel()

    def add(self, name: str, width: int = 64, height: int = 64, caption: str | None = "a caption") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(width, height, seed=sum(name.encode())).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    def concept(self, **options) -> ConceptConfig:
        return ConceptConfig.from_dict({"path": str(self.folder), **options})

    def config(self, **options) -> TrainConfig:
        defaults = {"resolution": "64", "cache_dir": str(self.root / "cache"), "batch_size": 2, "dataloader_threads": 2}
        return TrainConfig.from_dict({**defaults, **options})

    def check(self, concepts=None, **options):
        return check_dataset(self.config(**options), concepts or [self.concept()], warn=self.warnings.append)

    def prepare(
        self, concepts=None, *, cache_text=True, model=None, validation=False, memory_budget=1 << 30, **options
    ):
        return prepare_data(
            self.config(**options),
            concepts or [self.concept()],
            model or self.model,
            cache_text=cache_text,
            validation=validation,
            warn=self.warnings.append,
            memory_budget=memory_budget,
        )

    def cached(self, kind: str) -> list[Path]:
        return sorted((self.root / "cache" / kind).rglob("*.safetensors"))


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    return Dataset(tmp_path)


@pytest.fixture
def pooling_model() -> type[PoolingModel]:
    return PoolingModel


@pytest.fixture
def picture():
    return draw
