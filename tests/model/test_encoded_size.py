"""What an encoded image and caption take, told without weights, against what encoding gives."""

from functools import partial

from modules.dataLoader.Encoder import Encoder
from modules.model.BaseModel import family_of
from modules.trainer.encoded_size import encoded_bytes
from modules.util.config.TrainConfig import TrainConfig

import torch

import pytest

LONG = "a photo " * 300


def size_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


# family -> its model type
FAMILIES = {
    "SD 1.5": "STABLE_DIFFUSION_15", "SDXL": "STABLE_DIFFUSION_XL_10_BASE", "SD 3": "STABLE_DIFFUSION_3",
    "Flux.1": "FLUX_DEV_1", "Flux.2 dev": "FLUX_2", "Flux.2 Klein": "FLUX_2", "Z-Image": "Z_IMAGE",
    "Chroma": "CHROMA_1", "Qwen-Image": "QWEN", "Ernie-Image": "ERNIE", "Krea 2": "KREA_2",
    "Anima": "ANIMA",
    "HiDream": "HI_DREAM_FULL",
    "PixArt alpha": "PIXART_ALPHA", "PixArt Sigma": "PIXART_SIGMA",
    "Sana": "SANA", "Ideogram 4": "IDEOGRAM_4",
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def load(request, folder_of):
    """load(**options) -> a model of each family."""
    folder, kind = folder_of(request.param), FAMILIES[request.param]

    def make(**options):
        config = TrainConfig.from_dict({"base_model_name": str(folder), "model_type": kind, **options})
        return family_of(config).load(config, torch.device("cpu"))

    return partial(make)


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_dtype": "BFLOAT_16", "vae": {"weight_dtype": "FLOAT_32"}}, {"text_cache_dtype": "FLOAT_16"}],
    ids=["as it is", "bfloat16", "stored in 16 bits"],
)
def test_it_is_what_encoding_gives(load, options):
    model = load(**options)
    before = torch.random.get_rng_state()
    told = encoded_bytes(model)
    assert not model.components.loaded and torch.equal(torch.random.get_rng_state(), before)
    encoder = Encoder(model, model.config.text_cache_dtype)
    side = 2 * model.image_grid
    latent = encoder.image(torch.zeros(3, side, side), "x")
    assert told.image * side * side == size_of({"latent": latent})
    assert told.mask * side * side == 4 * latent.shape[1] * latent.shape[2] and told.conditioning == 0
    assert told.caption == size_of(encoder.caption(LONG))
    assert told.short_caption == size_of(encoder.caption("a photo "))
    # captions of these families have as many tokens as they need
    whole = (
        *("Z_IMAGE", "CHROMA_1", "QWEN", "ERNIE", "KREA_2", "IDEOGRAM_4"),
        *("PIXART_ALPHA", "PIXART_SIGMA", "SANA", "ANIMA"),
    )
    assert (told.short_caption < told.caption) == (model.config.model_type in whole)


def test_chunks_count_as_many_as_there_may_be(small_folder):
    config = {"base_model_name": str(small_folder), "model_type": "STABLE_DIFFUSION_15", "prompt_chunks": 3}
    config = TrainConfig.from_dict(config)
    model = family_of(config).load(config, torch.device("cpu"))
    told = encoded_bytes(model)
    assert told.caption == size_of(Encoder(model).caption(LONG))
    assert told.short_caption == size_of(Encoder(model).caption("a red shape")) < told.caption
    untold = encoded_bytes(model, cache_text=False)
    assert untold.caption == untold.short_caption == 0


def test_what_cant_be_followed_is_not_told(small_folder, monkeypatch):
    config = TrainConfig.from_dict({"base_model_name": str(small_folder), "model_type": "STABLE_DIFFUSION_15"})
    model = family_of(config).load(config, torch.device("cpu"))

    def looks(pixels):
        raise RuntimeError("needs numbers")

    monkeypatch.setattr(type(model), "encode_images", lambda self, pixels: looks(pixels))
    assert encoded_bytes(model) is None
