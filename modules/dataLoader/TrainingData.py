import hashlib
from collections import Counter
from collections.abc import Callable
from functools import cached_property, lru_cache

from modules.dataLoader.Batch import Batch
from modules.dataLoader.collate import Allocate
from modules.dataLoader.Encoder import Encoder, EncodingModel
from modules.dataLoader.Entry import Entry
from modules.dataLoader.ImageSource import ImageSource
from modules.dataLoader.PendingBatch import PendingBatch
from modules.dataLoader.plan import PlannedBatch, PlannedSample, PlanRules, plan_epoch
from modules.dataLoader.plan_size import BatchCounter
from modules.dataLoader.TensorStore import Tensors, TensorStore
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.enum.DataType import DataType

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

REMEMBERED_KEYS = 1 << 17
Place = tuple[int, int]
"""(image, variation)."""

ShownPlace = tuple[int, int, bool]
"""(image, variation, whether the whole image is to be filled) of a conditioning."""


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
        # else each text has the same length, or what fills it up is hidden
        self._lengths_meet = config.prompt_chunks > 1
        self._model, self._text_format = model, config.text_cache_dtype
        self._counters: dict[int, BatchCounter] = {}
        # they are asked for at each use
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
        """How many batches each of so many epochs has; the same counter for the same number."""
        if epochs not in self._counters:
            source = self.source
            self._counters[epochs] = BatchCounter(
                self._rules, source.concepts, source.images, source.begin_sizes, epochs, source.sizes_vary
            )
        return self._counters[epochs]

    def load(self, planned: PlannedBatch) -> Batch:
        """Fetches a batch. What is not cached is encoded by the model.

        Raises:
            UserError: if a file that has to be read again has changed.
        """
        return self.pending(planned).finish()

    def pending(self, planned: PlannedBatch, allocate: Allocate | None = None) -> PendingBatch:
        """A batch of which nothing is read yet.

        Args:
            planned: its samples.
            allocate: gives the memory of its tensors; None: it is used again when the batch is gone.
        """
        samples, source = planned.samples, self.source
        images = [source.images[sample.image] for sample in samples]
        concepts = [source.concepts[image.concept] for image in images]
        captions = [self.caption(sample) for sample in samples]
        latents = [self.latent_entry(sample.image, sample.image_variation) for sample in samples]
        masks = [self._sample_mask(sample, latent) for sample, latent in zip(samples, latents, strict=True)]
        shown = [self._shown_place(sample) for sample in samples]
        others = planned.others if self._lengths_meet else ()
        return PendingBatch(
            latents=latents,
            texts=list(map(self._sample_text, samples)) if self._encode_text else None,
            company=list(map(self._sample_text, others)) if self._encode_text else (),
            conditioning=[self.conditioning_entry(place) for place in shown] if self.conditioned else None,
            masks=masks if self._masked else None,
            unmasked_weight=self._unmasked_weight,
            loss_weight=[concept.loss_weight for concept in concepts],
            placement=[source.placement(sample.image, sample.image_variation) for sample in samples],
            facts={
                "captions": captions,
                "names": [image.path for image in images],
                "size": planned.size,
                "types": [concept.type for concept in concepts],
                "first": planned.first,
                "whole": len(samples) + len(planned.others),
                "others": [self.caption(sample) for sample in others],
            },
            empty_text=lambda: self.text_entry(""),
            allocate=allocate or self._store.memory.take,
        )

    def rest_model(self) -> None:
        """Lets the model put away what it has loaded to encode a batch, and training does not need."""
        self._model.rest()

    def sizes(self, epoch: int = 0) -> dict[tuple[int, int], int]:
        """How many samples of an epoch have which (height, width), most frequent first."""
        counts = Counter()
        for batch in self.plan(epoch):
            counts[batch.size] += len(batch.samples)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def caption(self, sample: PlannedSample) -> str:
        """The caption of a sample, "" if it is dropped."""
        return "" if sample.drop_caption else self.source.caption(sample.image, sample.text_variation)

    def latent_entry(self, image: int, variation: int) -> Entry:
        """`latent` [c, h/f, w/f] of an image."""
        return self._entry(
            "latents",
            lambda: self.latent_key(image, variation),
            lambda: (self.source.pixels(image, variation),),
            lambda pixels: {"latent": self._encoder.image(pixels, self.source.images[image].path)},
        )

    def mask_entry(self, image: int, variation: int, latent: Entry) -> Entry:
        """`mask` [1, h/f, w/f] of an image as its file says, averaged over the pixels of each of its latents."""

        def render() -> tuple[Tensor]:
            latent.read()
            return (self.source.mask(image, variation),)

        return self._entry(
            "masks",
            lambda: self.mask_key(image, variation),
            render,
            lambda mask: {"mask": adaptive_avg_pool2d(mask[None], latent.tensors()["latent"].shape[-2:])[0]},
        )

    def conditioning_entry(self, place: ShownPlace) -> Entry:
        """The conditioning of an image as the model encodes it: name -> [...]."""
        name = self.source.images[place[0]].path
        return self._entry(
            "conditioning",
            lambda: self.conditioning_key(*place),
            lambda: self.source.conditioning(*place),
            lambda pixels, mask: self._encoder.conditioning(pixels, mask, name),
        )

    def text_entry(self, caption: str, place: ShownPlace | None = None) -> Entry:
        """A caption as the model encodes it: name -> [...].

        Args:
            caption: the text.
            place: of the image whose conditioning is read together with it; None: it is read alone.
        """
        return Entry(
            self._store,
            "captions",
            self.text_key(caption, place),
            lambda: (None if place is None else self.source.conditioning(*place)[0],),
            lambda pixels: self._encoder.caption(caption, pixels),
        )

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

    def _sample_text(self, sample: PlannedSample) -> Entry:
        return self.text_entry(self.caption(sample), self._shown_place(sample) if self.texts_see_conditioning else None)

    def _sample_mask(self, sample: PlannedSample, latent: Entry) -> Entry | None:
        """The mask of a sample; None if it is 1 everywhere."""
        image, variation = sample.image, sample.image_variation
        if not self._masked or sample.whole_image or not self.source.has_mask(image, variation):
            return None
        return self.mask_entry(image, variation, latent)

    def _shown_place(self, sample: PlannedSample) -> ShownPlace:
        return sample.image, sample.image_variation, self._fills_masks and sample.whole_image

    def _entry(
        self, kind: str, key: Callable[[], str], render: Callable[[], tuple], encode: Callable[..., Tensors]
    ) -> Entry:
        if not self._keep_images:
            return Entry(None, kind, "", render, encode)
        return Entry(self._store, kind, key(), render, encode)
