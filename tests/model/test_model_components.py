"""Components are loaded when they are needed, put away when they are not, and can come from elsewhere."""

import gc
import shutil
import weakref

from modules.model import BaseModel as base_module
from modules.model.ModelComponents import ModelComponents
from modules.model.StableDiffusionModel import StableDiffusionModel
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch
from torch import nn

import pytest
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")


def components_of(loads: list[str], temp_device: str = "meta") -> ModelComponents:
    def load(name: str) -> nn.Module:
        loads.append(name)
        return nn.Linear(2, 2)

    return ModelComponents(["a", "b"], load, CPU, torch.device(temp_device))


def test_components_are_loaded_when_asked_for_and_again_after_they_were_freed():
    loads = []
    components = components_of(loads)
    assert list(components) == ["a", "b"] and len(components) == 2 and not loads
    first = components["a"]
    assert components["a"] is first and loads == ["a"] and components.loaded == {"a": first}
    components.free("a")
    assert not components.loaded and components["a"] is not first and loads == ["a", "a"]
    components.load_all()
    assert loads == ["a", "a", "b"]
    with pytest.raises(KeyError):
        components["c"]


def test_a_parked_component_waits_on_the_other_device():
    # the meta device stands for any other; a component can't come back from it, which shows that it is asked to
    components = components_of([])
    components.park("a")
    assert not components.loaded
    module = components["a"]
    components.park("a")
    assert module.weight.is_meta
    with pytest.raises(NotImplementedError):
        components["a"]
    same = components_of([], "cpu")
    same["a"]
    same.park("a")
    assert not same["a"].weight.is_meta


@pytest.fixture
def model(small_folder) -> StableDiffusionModel:
    return StableDiffusionModel.load(TrainConfig(base_model_name=str(small_folder)), CPU)


def test_what_names_and_sizes_need_no_weights(model):
    assert model.image_grid == 4 and model.adapter_naming().read and model.vae_factor
    assert not model.components.loaded
    assert all(tensor.is_meta for tensor in model.layers_of("unet").parameters())
    assert model.layers_of("unet").state_dict().keys() == model.unet.state_dict().keys()
    assert model.layers_of("unet") is model.unet


def test_the_denoiser_is_not_there_while_captions_are_encoded_and_encoders_are_freed_before_it(model):
    sample = SampleConfig(prompt="red cat", width=8, height=8, diffusion_steps=1)
    hidden = model.encode_captions(["red cat"])["hidden"]
    model.encode_images(torch.zeros(1, 3, 16, 16))
    prompts = model.prompts(sample)
    assert model.components.loaded.keys() == {"text_encoder", "vae"}
    model.rest()
    assert model.components.loaded.keys() == {"vae"}
    image = model.sample(sample, 1, lambda *_: None)
    assert "text_encoder" not in model.components.loaded, "prompts are remembered"
    assert torch.equal(model.prompts(sample)["hidden"], prompts["hidden"])
    # it comes back where it is asked for
    assert torch.equal(model.encode_captions(["red cat"])["hidden"], hidden)
    other = sample.model_copy(update={"prompt": "a dog"})
    assert model.sample(other, 1, lambda *_: None).tobytes() != image.tobytes()


def test_encoders_stay_where_they_are_needed(small_folder):
    model = StableDiffusionModel.load(TrainConfig(base_model_name=str(small_folder), latent_caching=False), CPU)
    model.encode_captions(["cat"])
    model.rest()
    assert "text_encoder" in model.components.loaded
    model.config = model.config.model_copy(update={"latent_caching": True})
    model.text_encoder_trained = True
    model.rest()
    assert "text_encoder" in model.components.loaded


@pytest.mark.parametrize("inside", [True, False])
def test_a_component_from_another_place(small_folder, tmp_path, inside):
    other = tmp_path / "other"
    shutil.copytree(small_folder / "vae", other / "vae" if inside else other)
    file = next(other.rglob("*.safetensors"))
    tensors = load_file(file)
    tensors["encoder.conv_in.bias"] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    config = TrainConfig(base_model_name=str(small_folder))
    config.vae.model_name = str(other)
    model = StableDiffusionModel.load(config, CPU)
    own = StableDiffusionModel.load(TrainConfig(base_model_name=str(small_folder)), CPU)
    torch.testing.assert_close(model.vae.encoder.conv_in.bias, own.vae.encoder.conv_in.bias + 1)
    assert model.image_fingerprint() != own.image_fingerprint() and model.vae_factor == own.vae_factor


def test_a_component_that_is_nowhere(small_folder, tmp_path):
    config = TrainConfig(base_model_name=str(small_folder))
    config.vae.model_name = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="vae.model_name: .*nowhere does not exist"):
        StableDiffusionModel.load(config, CPU).vae  # noqa: B018
    (tmp_path / "vae.safetensors").write_bytes(b"x")
    config.vae.model_name = str(tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match="vae.model_name: .*vae.safetensors: truncated"):
        StableDiffusionModel.load(config, CPU).vae  # noqa: B018


def test_what_is_freed_leaves_memory_at_once(model, monkeypatch):
    """Nothing holds an encoder that has encoded, not even a circle; the device gets its memory back once."""
    released = []
    monkeypatch.setattr(base_module, "release_memory", released.append)
    model.encode_captions(["a red cat"])
    model.prompts(SampleConfig(prompt="a dog"))
    encoder = model.components["text_encoder"]
    held = [weakref.ref(encoder), *map(weakref.ref, encoder.parameters())]
    del encoder
    gc.disable()
    try:
        model.rest()
        assert [ref() for ref in held if ref() is not None] == []
    finally:
        gc.enable()
    model.rest()
    assert released == [CPU]
