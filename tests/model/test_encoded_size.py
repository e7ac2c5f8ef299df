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


@pytest.fixture(params=["sd", "xl", "sd3", "flux1", "dev", "klein", "zimage", "chroma", "qwen", "ernie", "krea2"])
def load(
    request,
    small_folder,
    xl_folder,
    sd3_folders,
    flux1_folders,
    flux2_folders,
    zimage_folder,
    chroma_folder,
    qwen_folder,
    ernie_folder,
    krea2_folder,
):
    """load(**options) -> a model of each family."""
    folder, kind = {
        "sd": (small_folder, "STABLE_DIFFUSION_15"), "xl": (xl_folder, "STABLE_DIFFUSION_XL_10_BASE"),
        "sd3": (sd3_folders["3"], "STABLE_DIFFUSION_3"),
        "flux1": (flux1_folders["dev"], "FLUX_DEV_1"), "chroma": (chroma_folder, "CHROMA_1"),
        "zimage": (zimage_folder, "Z_IMAGE"),
        "dev": (flux2_folders["dev"], "FLUX_2"), "klein": (flux2_folders["klein"], "FLUX_2"),
        "qwen": (qwen_folder, "QWEN"), "ernie": (ernie_folder, "ERNIE"),
        "krea2": (krea2_folder, "KREA_2"),
    }[request.param]  # fmt: skip

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
    whole = ("Z_IMAGE", "CHROMA_1", "QWEN", "ERNIE", "KREA_2")
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
