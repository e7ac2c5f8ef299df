import hashlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache

from modules.dataLoader.buckets import choose_bucket, resolutions_of
from modules.dataLoader.captions import vary_caption
from modules.dataLoader.DatasetReport import DatasetImage
from modules.dataLoader.ImageVariation import ImageVariation, draw_resolution, resolution_key
from modules.dataLoader.render import (
    RENDER_VERSION,
    Geometry,
    find_geometry,
    render_mask,
    render_pixels,
    scaled_geometry,
)
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.resolution import Resolution
from modules.util.config.TrainConfig import TrainConfig
from modules.util.decode_image import LARGEST_FILE, ImageError, decode_image
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.keyed_choices import ChoicesAhead
from modules.util.regular_file import read_regular
from modules.util.UserError import UserError

import torch
from torch import Tensor

import numpy as np
from PIL import Image


class ImageSource:
    """Images and captions in all their variations, not yet encoded.

    Args:
        config: the run's config.
        concepts: all concepts.
        images: all images; `index` below counts in them.
        image_grid: what sides of training images are multiples of, in pixels.
        conditioning: the fact of the family's class.
    """

    def __init__(
        self,
        config: TrainConfig,
        concepts: Sequence[ConceptConfig],
        images: Sequence[DatasetImage],
        image_grid: int,
        conditioning: ConditioningSource = ConditioningSource.NONE,
    ) -> None:
        self._masked = conditioning == ConditioningSource.MASK
        self.images = list(images)
        self.concepts = list(concepts)
        self._grid = image_grid
        self._bucketing = config.aspect_ratio_bucketing
        self._resolutions = [resolutions_of(config, concept) for concept in concepts]
        self.layout = lru_cache(maxsize=1 << 17)(self._layout)
        self._size_numbers: dict[tuple[int, int], int] = {}
        self._bucket = lru_cache(maxsize=1 << 17)(self._choose_bucket)

    def _layout(self, index: int, variation: int) -> tuple[ImageVariation, Geometry]:
        image = self.images[index]
        drawn = ImageVariation.draw(
            self.concepts[image.concept], image.name, variation, self._resolutions[image.concept]
        )
        size = self._bucket(image.width, image.height, drawn.resolution)
        return drawn, find_geometry(image.width, image.height, size, drawn)

    def size(self, index: int, variation: int) -> tuple[int, int]:
        """(height, width) in which an image is trained, in pixels."""
        image = self.images[index]
        # without the rest of its layout: a plan asks for all variations of all images
        resolutions = self._resolutions[image.concept]
        resolution = draw_resolution(self.concepts[image.concept], image.name, variation, resolutions)
        width, height = self._bucket(image.width, image.height, resolution)
        return height, width

    def sizes_vary(self, concept: int) -> bool:
        """Whether an image of a concept may have another size in another variation."""
        return len(self._resolutions[concept]) > 1

    def begin_sizes(self, members: Sequence[int], variations: int) -> Callable[[], np.ndarray]:
        """Begins to find the sizes of images of one concept in their first variations, which may take seconds.

        Args:
            members: indices of the images.
            variations: how many of each; 1 where sizes don't vary.

        Returns:
            gives, once they are found, numbers of the sizes `[variations, members]`, the same for equal sizes in all
            calls.
        """
        images = [self.images[member] for member in members]
        concept, resolutions = self.concepts[images[0].concept], self._resolutions[images[0].concept]
        chosen = None
        if len(resolutions) > 1:
            chosen = ChoicesAhead([resolution_key(concept, i.name) for i in images], variations, len(resolutions))

        def finish() -> np.ndarray:
            sizes = [self._bucket(image.width, image.height, own) for image in images for own in resolutions]
            numbers = [self._size_numbers.setdefault(size, len(self._size_numbers)) for size in sizes]
            table = np.array(numbers).reshape(len(images), len(resolutions))
            if chosen is None:
                return np.repeat(table.T, variations, axis=0)
            drawn = np.asarray(chosen.finish()).reshape(len(images), variations)
            return np.take_along_axis(table, drawn.astype(np.int64), axis=1).T

        return finish

    def _choose_bucket(self, width: int, height: int, resolution: Resolution) -> tuple[int, int]:
        return choose_bucket(width, height, resolution, self._grid, self._bucketing)

    def placement(self, index: int, variation: int) -> tuple[int, int, int, int, int, int]:
        """What SDXL is told of an image, each (height, width) or (top, left): its own size, the crop, the bucket.

        The crop counts in pixels of the image after scaling, and of its mirror image where it is mirrored.
        """
        image, geometry = self.images[index], self.layout(index, variation)[1]
        left, top, right, bottom = geometry.box
        if geometry.flip:
            left = image.width - right
        # a turned crop is larger than the bucket around the same centre
        scale = geometry.inner[1] / (bottom - top)
        edges = [(inner - size) / 2 for inner, size in zip(geometry.inner, geometry.size, strict=True)]
        crop = round(top * scale + edges[1]), round(left * scale + edges[0])
        return image.height, image.width, *crop, geometry.size[1], geometry.size[0]

    def pixels_key(self, index: int, variation: int, fingerprint: str) -> str:
        """Names the encoded pixels by everything that they depend on: content, settings, and the encoder."""
        drawn, geometry = self.layout(index, variation)
        colours = [drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue]
        image = self.images[index]
        return _key("pixels", image.sha256, _numbers(geometry), colours, fingerprint, *_said(image.full))

    def mask_key(self, index: int, variation: int, fingerprint: str) -> str:
        """The same for the mask, which depends on the encoder by its size."""
        drawn, geometry = self.layout(index, variation)
        image, circle = self.images[index], drawn.mask_circle
        return _key("mask", image.mask_sha256, _numbers(geometry), circle, fingerprint, *_said(image.mask_full))

    def conditioning_key(self, index: int, variation: int, fingerprint: str, whole: bool = False) -> str:
        """The same for the conditioning: what it is made of, and of whatever else `fingerprint` names.

        That of a whole image that is to be filled depends on the size alone.
        """
        if whole or self._is_blank(index, variation):
            return _key("conditioning", "blank", self.size(index, variation), fingerprint)
        image, geometry = self.images[index], self.layout(index, variation)[1]
        if image.conditioning_sha256 is None:
            own = ["made", self.pixels_key(index, variation, "")]
        else:
            own = ["file", image.conditioning_sha256, _numbers(geometry), *_said(image.conditioning_full)]
        mask = self.mask_key(index, variation, "") if self._masked else ""
        return _key("conditioning", own, mask, fingerprint)

    def has_mask(self, index: int, variation: int) -> bool:
        """Whether the mask is anything but 1 everywhere."""
        return self.images[index].mask_path is not None or self.layout(index, variation)[0].mask_circle is not None

    def pixels(self, index: int, variation: int) -> Tensor:
        """[3, h, w], float32 in [-1, 1]."""
        image, (drawn, geometry) = self.images[index], self.layout(index, variation)
        return render_pixels(_decode_again(image.path, image.sha256), geometry, drawn)

    def mask(self, index: int, variation: int) -> Tensor:
        """[1, h, w], float32 in [0, 1]."""
        image, (drawn, geometry) = self.images[index], self.layout(index, variation)
        mask = None
        if image.mask_path is not None:
            mask = _decode_again(image.mask_path, image.mask_sha256).convert("L")
            if mask.size != (image.width, image.height):
                mask = mask.resize((image.width, image.height), Image.Resampling.BILINEAR)
        return render_mask(mask, geometry, drawn)

    def conditioning(self, index: int, variation: int, whole: bool = False) -> tuple[Tensor, Tensor | None]:
        """The conditioning image [3, h, w] in [-1, 1], and of families that fill masks the mask [1, h, w] in [0, 1].

        From its file it has the image's geometry and none of its changes of colour. Without a file it is the image as
        it is trained, grey (0) where the mask is white: what is kept must agree with the target. With `whole` the image
        is grey and the mask white everywhere, whatever the files hold.
        """
        if whole or self._is_blank(index, variation):
            size = self.size(index, variation)
            return torch.zeros(3, *size), torch.ones(1, *size)
        image, (drawn, geometry) = self.images[index], self.layout(index, variation)
        mask = self.mask(index, variation) if self._masked else None
        if image.conditioning_path is None:
            return self.pixels(index, variation) * (1 - mask), mask
        shown = _decode_again(image.conditioning_path, image.conditioning_sha256)
        plain = ImageVariation(drawn.resolution)
        return render_pixels(shown, scaled_geometry(geometry, (image.width, image.height), shown.size), plain), mask

    def _is_blank(self, index: int, variation: int) -> bool:
        """Whether nothing of the image is shown, as it has neither a mask nor a conditioning image."""
        return self._masked and self.images[index].conditioning_path is None and not self.has_mask(index, variation)

    def caption(self, index: int, variation: int) -> str:
        """The caption in one of its variations."""
        image = self.images[index]
        return vary_caption(self.concepts[image.concept], image.name, image.captions, variation)


def _said(full: float | None) -> tuple[str, ...]:
    """Part of the keys of images whose file says which value is white: versions that did not read it made others."""
    return () if full is None else (f"white is {full:g}",)


def _numbers(geometry: Geometry) -> tuple:
    return geometry.box, geometry.inner, geometry.size, geometry.angle, geometry.flip


def _key(*parts) -> str:
    return hashlib.sha256(json.dumps([RENDER_VERSION, *parts]).encode()).hexdigest()


def _decode_again(path: str, sha256: str | None) -> Image.Image:
    try:
        data = read_regular(path, LARGEST_FILE)
        if hashlib.sha256(data).hexdigest() == sha256:
            return decode_image(data)
        reason = "its content is another one"
    except OSError as error:
        reason = error.strerror or str(error)
    except ImageError as error:
        reason = str(error)
    raise UserError(f"{path}: the file changed after the dataset check ({reason}); start again")
