"""Prompts of samples: encoded before the text encoders are freed, and kept in the cache beside the captions."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Sequence

from modules.dataLoader.cache_use import other_users
from modules.dataLoader.TensorCache import TensorCache
from modules.model.BaseModel import BaseModel
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

KIND = "prompts"
FAILURES = (UserError, OSError, RuntimeError, ValueError, MemoryError)


def encode_prompts(
    model: BaseModel,
    samples: Sequence[SampleConfig],
    config: TrainConfig,
    warn: Callable[[str], None],
    pids: Collection[int] = (),
) -> None:
    """Lets a model know the prompts of samples. No text encoder is loaded for those that the cache has.

    Where it fails, drawing will fail and say why. With `clear_cache_before_training` prompts of other samples are
    removed from the cache, unless another run uses it.

    Args:
        model: whose text encoders are not trained.
        samples: whose prompts are encoded.
        config: of the run; with `latent_caching` off nothing is kept on disk.
        warn: is told of damaged entries.
        pids: processes of the same run.
    """
    if not config.latent_caching or model.captions_see_conditioning:
        for sample in samples:
            with contextlib.suppress(*FAILURES):
                model.prompts(sample)
        return
    cache, keys = TensorCache(config.cache_dir, warn), []
    for sample in samples:
        with contextlib.suppress(*FAILURES):
            keys.append(prompts_key(model, sample))
            found = cache.read(KIND, keys[-1])
            if found is None:
                cache.write(KIND, keys[-1], model.prompts(sample))
            else:
                model.know_prompts(sample, found)
    if config.clear_cache_before_training and not other_users(cache.directory, pids):
        removed, _ = cache.prune({KIND: keys})
        if removed:
            warn(
                f"{cache.directory}: removed {removed} encoded prompts of samples that this run does not draw, as "
                "clear_cache_before_training is true"
            )


def prompts_key(model: BaseModel, sample: SampleConfig) -> str:
    """Names the encoded prompts of a sample in the cache, by all that `BaseModel.encode_prompts` may depend on."""
    own = {
        name: value
        for name, value in sample.to_dict().items()
        if name in ("prompt", "negative_prompt") or name.startswith("text_encoder_")
    }
    known = [type(model).__name__, model.text_fingerprint(), own]
    return hashlib.sha256(f"prompts\0{json.dumps(known, sort_keys=True)}".encode()).hexdigest()
