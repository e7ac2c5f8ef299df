import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, lru_cache

from modules.dataLoader.Batch import Batch
from modules.dataLoader.Encoder import Encoder, EncodingModel
from modules.dataLoader.ImageSource import ImageSource
from modules.dataLoader.plan import PlannedBatch, PlannedSample, PlanRules, plan_epoch
from modules.dataLoader.plan_size import BatchCounter
from modules.dataLoader.TensorStore import TensorStore
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.enum.DataType import DataType

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

REMEMBERED_KEYS = 1 << 17
Place = tuple[int, int]
"""(image, variation)."""

ShownPlace = tuple[int, int, bool]
"""(image, variation, whether the whole image is to be filled) of a conditioning."""

TEXT_MASK = "mask"
"""Name of `[b, n]` among encoded captions: False where a text is filled up to the length of a longer one."""


class TrainingData:
    """Everything a run trains on (or validates with), in batches that depend on config, seed and epoch alone.

    Made by `prepare_data`.

    Attributes:
        source: images and captions, not encoded.
        latent_key, mask_key: (image, variation) -> name in the cache.
        conditioning_key: the values of a `ShownPlace` -> name in the cache.
        fills_whole: whether some samples are to be filled as a whole, whatever their masks.
        conditioned: whether batches have a conditioning.
        texts_see_conditioning: whether captions are encoded together with it.
    """

    def __init__(
        self,
        config: TrainConfig,
        source: ImageSource,
        model: EncodingModel,
        store: TensorStore,
        *,
        rules: PlanRules,
        encode_text: bool,
    ) -> None:
        self.source = source
        self._encoder = Encoder(model, config.text_cache_dtype)
        self._store = store
        self._rules = rules
        self._encode_text = encode_text
        self._keep_images = config.latent_caching
        self._masked = config.masked_training
        self._unmasked_weight = config.unmasked_weight
        self.conditioned = model.conditioning != ConditioningSource.NONE
        self._fills_masks = model.conditioning == ConditioningSource.MASK
        self.fills_whole = self._fills_masks and rules.mask_dropout > 0 and not rules.fixed
        self.texts_see_conditioning = self.conditioned and model.captions_see_conditioning
        self._model, self._text_format = model, config.text_cache_dtype
        # loading is part of each training step
        self.latent_key = lru_cache(maxsize=REMEMBERED_KEYS)(self._latent_key)
        self.mask_key = lru_cache(maxsize=REMEMBERED_KEYS)(self._mask_key)
        self.conditioning_key = lru_cache(maxsize=REMEMBERED_KEYS)(self._conditioning_key)

    def name_entries(self) -> None:
        """Finds out what names of entries depend on, for which components may have to be loaded.

        To be called before anything is trained, and before several threads ask for entries.
        """
        wanted = {"_image_fingerprint": True, "_conditioning_fingerprint": self.conditioned}
        for name, is_needed in {**wanted, "_text_fingerprint": self._encode_text}.items():
            if is_needed:
                getattr(self, name)

    @cached_property
    def _image_fingerprint(self) -> str:
        return self._model.image_fingerprint()

    @cached_property
    def _conditioning_fingerprint(self) -> str:
        return self._model.conditioning_fingerprint()

    @cached_property
    def _text_fingerprint(self) -> str:
        own = "" if self._text_format == DataType.NONE else f" in {self._text_format}"
        return f"{self._model.text_fingerprint()}{own}"

    def plan(self, epoch: int) -> list[PlannedBatch]:
        """The batches of an epoch (from 0) in their order: the same for the same config, seed and data.

        Epochs may differ in their number of batches if images change their size from one to the next.
        """
        return plan_epoch(epoch, self._rules, self.source.concepts, self.source.images, self.source.size)

    def counter(self, epochs: int) -> BatchCounter:
        """How many batches each of so many epochs has."""
        source = self.source
        return BatchCounter(self._rules, source.concepts, source.images, source.size, epochs, source.sizes_vary)

    def load(self, planned: PlannedBatch) -> Batch:
        """Fetches a batch. What is not cached is encoded by the model.

        Raises:
            UserError: if a file that has to be read again has changed.
        """
        samples, images = planned.samples, self.source.images
        latents = [self.latent(sample.image, sample.image_variation) for sample in samples]
        captions = [self.caption(sample) for sample in samples]
        concepts = [self.source.concepts[images[sample.image].concept] for sample in samples]
        mask = None
        if self._masked:
            mask = torch.stack([self._mask(s, latent) for s, latent in zip(samples, latents, strict=True)])
        return Batch(
            latents=torch.stack(latents),
            text=self._text(captions, samples) if self._encode_text else None,
            captions=captions,
            loss_weight=torch.tensor([concept.loss_weight for concept in concepts], dtype=torch.float32),
            mask=mask,
            placement=torch.tensor(
                [self.source.placement(s.image, s.image_variation) for s in samples], dtype=torch.float32
            ),
            names=[images[sample.image].path for sample in samples],
            size=planned.size,
            types=[concept.type for concept in concepts],
            conditioning=self._conditioning(samples) if self.conditioned else None,
        )

    def sizes(self, epoch: int = 0) -> dict[tuple[int, int], int]:
        """How many samples of an epoch have which (height, width), most frequent first."""
        counts = Counter()
        for batch in self.plan(epoch):
            counts[batch.size] += len(batch.samples)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def caption(self, sample: PlannedSample) -> str:
        """The caption of a sample, "" if it is dropped."""
        return "" if sample.drop_caption else self.source.caption(sample.image, sample.text_variation)

    def latent(self, image: int, variation: int) -> Tensor:
        """The latent [c, h/f, w/f] of an image."""

        def build() -> dict[str, Tensor]:
            return self._encode(image, self.source.pixels(image, variation))

        if not self._keep_images:
            return build()["latent"]
        return self._store.fetch("latents", self.latent_key(image, variation), build)["latent"]

    def add_latent(self, image: int, variation: int, pixels: Tensor) -> None:
        """Encodes an image whose rendered pixels [3, h, w] are at hand, and keeps the result."""
        self._store.add("latents", self.latent_key(image, variation), self._encode(image, pixels))

    def has_latent(self, image: int, variation: int) -> bool:
        """Whether the latent need not be encoded."""
        return self._keep_images and self._store.has("latents", self.latent_key(image, variation))

    def mask(self, image: int, variation: int, latent: Tensor) -> Tensor:
        """The mask [1, h/f, w/f] of an image as its file says, averaged over the pixels of each latent."""
        if not self.source.has_mask(image, variation):
            return torch.ones(1, *latent.shape[-2:])

        def build() -> dict[str, Tensor]:
            return {"mask": adaptive_avg_pool2d(self.source.mask(image, variation)[None], latent.shape[-2:])[0]}

        if not self._keep_images:
            return build()["mask"]
        return self._store.fetch("masks", self.mask_key(image, variation), build)["mask"]

    def has_cached_mask(self, image: int, variation: int) -> bool:
        """Whether the mask need not be averaged."""
        return self._keep_images and self._store.has("masks", self.mask_key(image, variation))

    def conditioning(self, place: ShownPlace) -> dict[str, Tensor]:
        """The conditioning of an image as the model encodes it: name -> [...]."""

        def build() -> dict[str, Tensor]:
            return self._encode_conditioning(place, *self.source.conditioning(*place))

        if not self._keep_images:
            return build()
        return self._store.fetch("conditioning", self.conditioning_key(*place), build)

    def add_conditioning(self, place: ShownPlace, pixels: Tensor, mask: Tensor | None) -> None:
        """Encodes what `ImageSource.conditioning` has given, and keeps the result."""
        self._store.add("conditioning", self.conditioning_key(*place), self._encode_conditioning(place, pixels, mask))

    def has_conditioning(self, place: ShownPlace) -> bool:
        """Whether the conditioning need not be encoded."""
        return self._store.has("conditioning", self.conditioning_key(*place))

    def text(self, caption: str, place: ShownPlace | None = None) -> dict[str, Tensor]:
        """A caption as the model encodes it: name -> [...].

        Args:
            caption: the text.
            place: of the image whose conditioning is read together with it; None: it is read alone.
        """

        def build() -> dict[str, Tensor]:
            return self._encoder.caption(caption, None if place is None else self.source.conditioning(*place)[0])

        return self._store.fetch("captions", self.text_key(caption, place), build)

    def has_text(self, caption: str, place: ShownPlace | None = None) -> bool:
        """Whether the caption need not be encoded."""
        return self._store.has("captions", self.text_key(caption, place))

    def text_key(self, caption: str, place: ShownPlace | None = None) -> str:
        """Names an encoded caption in the cache."""
        if place is not None:
            image, variation, whole = place
            seen = self.source.conditioning_key(image, variation, self._text_fingerprint, whole)
            return hashlib.sha256(f"instruction\0{seen}\0{caption}".encode()).hexdigest()
        return hashlib.sha256(f"caption\0{self._text_fingerprint}\0{caption}".encode()).hexdigest()

    def _latent_key(self, image: int, variation: int) -> str:
        return self.source.pixels_key(image, variation, self._image_fingerprint)

    def _mask_key(self, image: int, variation: int) -> str:
        return self.source.mask_key(image, variation, self._image_fingerprint)

    def _conditioning_key(self, image: int, variation: int, whole: bool = False) -> str:
        return self.source.conditioning_key(image, variation, self._conditioning_fingerprint, whole)

    def _shown_place(self, sample: PlannedSample) -> ShownPlace:
        return sample.image, sample.image_variation, self._fills_masks and sample.whole_image

    def _encode_conditioning(self, place: ShownPlace, pixels: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        return self._encoder.conditioning(pixels, mask, self.source.images[place[0]].path)

    def _conditioning(self, samples: Sequence[PlannedSample]) -> dict[str, Tensor]:
        found = [self.conditioning(self._shown_place(sample)) for sample in samples]
        return {name: torch.stack([tensors[name] for tensors in found]) for name in found[0]}

    def _encode(self, image: int, pixels: Tensor) -> dict[str, Tensor]:
        return {"latent": self._encoder.image(pixels, self.source.images[image].path)}

    def _mask(self, sample: PlannedSample, latent: Tensor) -> Tensor:
        if sample.whole_image:
            return torch.ones(1, *latent.shape[-2:])
        return self.mask(sample.image, sample.image_variation, latent).clamp(self._unmasked_weight, 1)

    def _text(self, captions: list[str], samples: Sequence[PlannedSample]) -> dict[str, Tensor]:
        places = [self._shown_place(sample) if self.texts_see_conditioning else None for sample in samples]
        encoded = [self.text(caption, place) for caption, place in zip(captions, places, strict=True)]
        if TEXT_MASK in encoded[0]:
            longest = max(len(tensors[TEXT_MASK]) for tensors in encoded)
            encoded = [pad_text(tensors, longest) for tensors in encoded]
        return {name: torch.stack(self._padded(name, [tensors[name] for tensors in encoded])) for name in encoded[0]}

    def _padded(self, name: str, tensors: list[Tensor]) -> list[Tensor]:
        """Captions of fewer chunks than others get empty ones, which are what the empty caption is."""
        if len({tensor.shape for tensor in tensors}) == 1:
            return tensors
        most, empty = max(map(len, tensors)), self.text("")[name]
        return [torch.cat([tensor, *[empty] * ((most - len(tensor)) // len(empty))]) for tensor in tensors]


def pad_text(tensors: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """An encoded caption filled up with zeros to `length` tokens, which its mask then leaves out.

    Args:
        tensors: name -> `[n, ...]`, for each of n tokens; what has one axis and is no mask belongs to the whole text.
        length: at least n.
    """
    missing = length - len(tensors[TEXT_MASK])
    return {
        name: torch.cat([value, value.new_zeros(missing, *value.shape[1:])])
        if missing and (name == TEXT_MASK or value.dim() > 1)
        else value
        for name, value in tensors.items()
    }
