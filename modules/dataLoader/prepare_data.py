"""Builds what a run trains on: dataset check, then everything encoded once and cached."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import starmap
from typing import Any

from modules.dataLoader.cache_space import CacheSpace, MissingEntries
from modules.dataLoader.cache_use import other_users, use_cache
from modules.dataLoader.check_dataset import check_dataset
from modules.dataLoader.DatasetReport import DatasetReport
from modules.dataLoader.encode_missing import encode_missing
from modules.dataLoader.Encoder import EncodingModel
from modules.dataLoader.ImageSource import ImageSource
from modules.dataLoader.plan import PlanRules
from modules.dataLoader.plan_size import used_variations
from modules.dataLoader.progress import Progress
from modules.dataLoader.TensorCache import KINDS, TensorCache
from modules.dataLoader.TensorStore import TensorStore
from modules.dataLoader.TrainingData import Place, ShownPlace, TrainingData
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConceptType import ConceptType
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.free_memory import free_memory
from modules.util.UserError import UserError
from modules.util.World import ALONE, World

logger = logging.getLogger(__name__)
Texts = list[tuple[str, ShownPlace | None]]

KEPT_EPOCHS = 1000
"""Variations that a run of so many epochs comes to are not removed from the cache."""

MEMORY_SHARE = 0.25
"""Of the free RAM, that holds encoded images and captions if the config does not say how much may."""


def prepare_data(
    config: TrainConfig,
    concepts: Sequence[ConceptConfig],
    model: EncodingModel,
    *,
    cache_text: bool,
    validation: bool = False,
    report: DatasetReport | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] = logger.warning,
    memory_budget: int | None = None,
    space: CacheSpace | None = None,
    world: World = ALONE,
) -> TrainingData:
    """Encodes all images and captions that are not cached yet. Of those that are, headers and sizes are looked at.

    With `latent_caching` off nothing is encoded here but everything at each use, with the same numbers.

    Args:
        config: the run's config.
        concepts: the concepts that were checked.
        model: encodes; see `EncodingModel`.
        cache_text: captions are encoded here. False if the text encoder is trained: then batches hold captions only,
            and each use of an image has a new text variation.
        validation: takes the VALIDATION concepts instead of those that are trained; every epoch is then the same.
        report: what `check_dataset` returned for the same config and concepts; None checks now.
        progress: is told how far each stage is.
        warn: gets findings, one line each.
        memory_budget: bytes of encoded data to hold in memory; None: as the config says.
        space: is asked for the disk that is missing before anything is encoded; None: nobody is.
        world: the processes of the run. Each encodes a part of what is missing, and all have the same cache.

    Raises:
        UserError: if there is nothing to use, a file changed, or the cache cannot be written or would not fit.
    """
    if report is None:
        report = check_dataset(config, concepts, conditioning=model.conditioning, warn=warn, progress=progress)
    cache = TensorCache(config.cache_dir, warn) if config.latent_caching else None
    if cache is not None:
        use_cache(cache.directory)
    store = TensorStore(cache, _memory_budget(config, memory_budget, world))

    def make(validation: bool) -> TrainingData:
        images = [image for image in report.images if _is_validation(concepts[image.concept]) == validation]
        source = ImageSource(config, concepts, images, model.image_grid, model.conditioning)
        rules = _plan_rules(config, cache_text, validation, model.conditioning)
        return TrainingData(config, source, model, store, rules=rules, encode_text=cache_text)

    data = make(validation)
    _check_used(data, validation)
    if cache is None:
        data.name_entries()
        return data
    if config.clear_cache_before_training and not validation:
        # what validation will ask for stays, too
        with world.leader_first():
            if world.leads:
                _prune(cache, (data, make(validation=True)), config, cache_text, warn, world)
    _fill(cache, data, config, cache_text, progress, space, world)
    return data


def _fill(
    cache: TensorCache,
    data: TrainingData,
    config: TrainConfig,
    cache_text: bool,
    progress: Progress | None,
    space: CacheSpace | None,
    world: World,
) -> None:
    texts = _texts(data, config) if cache_text else []
    with world.leader_first():
        if space is not None and world.leads:
            space.check(cache.directory, _missing(data, cache, config, texts))
    # in turn, so that what one has found out, the others read
    with world.leader_first():
        data.name_entries()
    _cache_images(data, config, progress, world)
    if cache_text:
        own, threads = world.own(texts), config.dataloader_threads
        encode_missing(starmap(data.text_entry, own), len(own), "captions", threads, progress)
    world.wait()


def _check_used(data: TrainingData, validation: bool) -> None:
    if not data.source.images:
        kinds = " or ".join(kind for kind in ConceptType if (kind == ConceptType.VALIDATION) == validation)
        raise UserError(f"no concept of type {kinds} has usable images; enable one, or correct the type of one")


def _memory_budget(config: TrainConfig, budget: int | None, world: World) -> int:
    if budget is None:
        budget = int(MEMORY_SHARE * free_memory() if config.data_memory is None else config.data_memory * 2**30)
    return budget // world.size


def _plan_rules(config: TrainConfig, cache_text: bool, validation: bool, conditioning: ConditioningSource) -> PlanRules:
    # a family that fills masks learns to fill whole images this way, whether the loss is masked or not
    masked = config.masked_training or conditioning == ConditioningSource.MASK
    return PlanRules(
        seed=config.seed,
        batch_size=config.batch_size,
        caption_dropout=config.text_encoder.dropout_probability,
        mask_dropout=config.unmasked_probability if masked else 0.0,
        vary_captions_freely=not cache_text,
        fixed=validation,
    )


def _is_validation(concept: ConceptConfig) -> bool:
    return concept.type == ConceptType.VALIDATION


def _image_variations(data: TrainingData, epochs: int) -> list[Place]:
    """All (image, variation) that so many epochs come to; validation uses the first variation only."""
    used = _used(data, epochs, [concept.image_variations for concept in data.source.concepts])
    images = enumerate(data.source.images)
    return [(index, variation) for index, image in images for variation in range(used[image.concept])]


def _shown_places(data: TrainingData, epochs: int) -> list[ShownPlace]:
    """The conditionings that so many epochs come to, each key once."""
    filled = (False, True) if data.fills_whole else (False,)
    places = [(*place, whole) for place in _image_variations(data, epochs) for whole in filled]
    return list({data.conditioning_key(*place): place for place in reversed(places)}.values())[::-1]


def _used(data: TrainingData, epochs: int, variations: Sequence[int]) -> list[int]:
    """How many of the variations that each concept has so many epochs come to; for validation one."""
    counts, concepts = Counter(image.concept for image in data.source.images), data.source.concepts
    return [
        1 if _is_validation(concept) else used_variations(concept, counts[index], epochs, count)
        for index, (concept, count) in enumerate(zip(concepts, variations, strict=True))
    ]


def _captions(data: TrainingData, epochs: int) -> list[str]:
    """All captions that so many epochs come to, each once; the empty one is always among them."""
    captions = {"": None}
    used = _used(data, epochs, [concept.text_variations for concept in data.source.concepts])
    for index, image in enumerate(data.source.images):
        variations = range(used[image.concept])
        captions |= dict.fromkeys(data.source.caption(index, variation) for variation in variations)
    return list(captions)


def _texts(data: TrainingData, config: TrainConfig, epochs: int | None = None) -> Texts:
    """What `TrainingData.text` will be asked for: captions, each with the image that is read with it, if one is."""
    epochs = config.epochs if epochs is None else epochs
    if not data.texts_see_conditioning:
        return [(caption, None) for caption in _captions(data, epochs)]
    # the n-th use of an image takes the n-th variation of both, so that pairs come again after the least multiple
    pairs = [math.lcm(concept.image_variations, concept.text_variations) for concept in data.source.concepts]
    used, wanted = _used(data, epochs, pairs), {}
    for index, image in enumerate(data.source.images):
        concept = data.source.concepts[image.concept]
        for use in range(used[image.concept]):
            captions = [data.source.caption(index, use % concept.text_variations)]
            captions += [""] if config.text_encoder.dropout_probability > 0 else []
            for whole in (False, True) if data.fills_whole else (False,):
                place = (index, use % concept.image_variations, whole)
                wanted |= {data.text_key(caption, place): (caption, place) for caption in captions}
    return list(wanted.values())


def _cache_images(data: TrainingData, config: TrainConfig, progress: Progress | None, world: World) -> None:
    threads, places = config.dataloader_threads, _image_variations(data, config.epochs)
    wanted = world.own(list({data.latent_key(*place): place for place in reversed(places)}.values())[::-1])
    encode_missing(starmap(data.latent_entry, wanted), len(wanted), "latents", threads, progress)
    if config.masked_training:
        # masks need the latents' sizes
        world.wait()
        named = {data.mask_key(*place): place for place in reversed(places) if data.source.has_mask(*place)}
        wanted = world.own(list(named.values())[::-1])
        masks = (data.mask_entry(*place, data.latent_entry(*place)) for place in wanted)
        encode_missing(masks, len(wanted), "masks", threads, progress)
    if data.conditioned:
        shown = world.own(_shown_places(data, config.epochs))
        encode_missing(map(data.conditioning_entry, shown), len(shown), "conditioning", threads, progress)


def _missing(data: TrainingData, cache: TensorCache, config: TrainConfig, texts: Texts) -> MissingEntries:
    """Entries whose files are not there, each once.

    The keys of kinds without any file have no fingerprint in them: that needs loaded weights.
    """
    source, places = data.source, _image_variations(data, config.epochs)
    masked = [place for place in places if config.masked_training and source.has_mask(*place)]
    filled = (False, True) if data.fills_whole else (False,)
    shown = [(*place, whole) for place in places for whole in filled] if data.conditioned else []

    def missing(
        kind: str, key_of: Callable[..., str], bare_key_of: Callable[..., Any], wanted: Sequence[tuple]
    ) -> list[tuple]:
        if cache.is_empty(kind):
            return list({bare_key_of(*one): one for one in wanted}.values())
        each = {key_of(*one): one for one in wanted}
        return [one for key, one in each.items() if not cache.path(kind, key).is_file()]

    def conditioning_key(image: int, variation: int, whole: bool) -> str:
        return source.conditioning_key(image, variation, "", whole)

    def sizes(found: Sequence[tuple]) -> list[tuple[int, int]]:
        return [source.size(*place[:2]) for place in found]

    return MissingEntries(
        sizes(missing("latents", data.latent_key, partial(source.pixels_key, fingerprint=""), places)),
        sizes(missing("masks", data.mask_key, partial(source.mask_key, fingerprint=""), masked)),
        sizes(missing("conditioning", data.conditioning_key, conditioning_key, shown)),
        # texts are joined already
        len(missing("captions", data.text_key, lambda *text: text, texts)),
    )


def _prune(
    cache: TensorCache,
    data: Sequence[TrainingData],
    config: TrainConfig,
    cache_text: bool,
    warn: Callable[[str], None],
    world: World,
) -> None:
    """Removes what neither training nor validation of this run will read, unless another run may read it."""
    if all(map(cache.is_empty, KINDS)):
        return
    if others := other_users(cache.directory, world.pids):
        warn(
            f"{cache.directory}: nothing is removed from the cache, as another run uses it (process "
            f"{', '.join(map(str, others))}); clear_cache_before_training has no effect this time"
        )
        return
    # a longer run of the same data finds its other variations
    epochs = max(config.epochs, KEPT_EPOCHS)
    places = [(own, place) for own in data for place in _image_variations(own, epochs)]
    keep = {"latents": [own.latent_key(*place) for own, place in places]}
    if config.masked_training:
        keep["masks"] = [own.mask_key(*place) for own, place in places]
    if data[0].conditioned:
        keep["conditioning"] = [own.conditioning_key(*place) for own in data for place in _shown_places(own, epochs)]
    if cache_text:
        keep["captions"] = [own.text_key(*text) for own in data for text in _texts(own, config, epochs)]
    removed, size = cache.prune(keep)
    if removed:
        warn(
            f"{cache.directory}: removed {removed} cached entries ({size / 1e6:.1f} MB) that do not fit this run's "
            "data, as clear_cache_before_training is true; switch it off to keep them"
        )
