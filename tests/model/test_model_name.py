"""What names of models mean, without any network; and that presets name models which can be had."""

import json
import socket
from pathlib import Path

from modules.model.model_name import (
    WEIGHT_ENDINGS,
    HubName,
    cached_commit,
    check_model_name,
    named_models,
    read_model_name,
    short_name,
)
from modules.model.weights_file import GGUF, PICKLES
from modules.util.config.load import load_train_config
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import pytest

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "training_presets").rglob("*.json"))
COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Names are read in an empty folder."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # a dot in a name is no ending
        ("stabilityai/stable-diffusion-xl-base-1.0", ("stabilityai/stable-diffusion-xl-base-1.0",)),
        ("black-forest-labs/FLUX.2-klein-base-4B", ("black-forest-labs/FLUX.2-klein-base-4B",)),
        (" some_lab/tiny/ ", ("some_lab/tiny",)),
        ("lab/tiny@fp16", ("lab/tiny", "fp16")),
        (f"lab/tiny@{COMMIT}", ("lab/tiny", COMMIT)),
        ("lab/tiny@refs/pr/12", ("lab/tiny", "refs/pr/12")),
        ("lab/tiny/model.safetensors", ("lab/tiny", "main", "model.safetensors")),
        ("lab/tiny/sub folder/v1.5.CKPT", ("lab/tiny", "main", "sub folder/v1.5.CKPT")),
        ("lab/tiny/model-Q4_K_M.gguf", ("lab/tiny", "main", "model-Q4_K_M.gguf")),
        ("lab/tiny@v2/sub/model.pt", ("lab/tiny", "v2", "sub/model.pt")),
        ("lab/tiny@refs/pr/3/model.pth", ("lab/tiny", "refs/pr/3", "model.pth")),
        ("https://huggingface.co/lab/tiny-1.0", ("lab/tiny-1.0",)),
        ("huggingface.co/lab/tiny/", ("lab/tiny",)),
        ("https://hf.co/lab/tiny?library=diffusers#files", ("lab/tiny",)),
        ("https://huggingface.co/lab/tiny/tree/fp16", ("lab/tiny", "fp16")),
        ("https://huggingface.co/lab/tiny/tree/refs%2Fpr%2F1", ("lab/tiny", "refs/pr/1")),
        ("https://huggingface.co/lab/tiny/commit/" + COMMIT, ("lab/tiny", COMMIT)),
        ("https://huggingface.co/lab/tiny/blob/main/a.safetensors", ("lab/tiny", "main", "a.safetensors")),
        (
            "http://www.huggingface.co/lab/tiny/resolve/v1/un%20et/a.safetensors?download=true",
            ("lab/tiny", "v1", "un et/a.safetensors"),
        ),
    ],
)
def test_names_on_the_hub(text, expected):
    name = HubName(*expected)
    assert read_model_name(text) == name
    # what is shown to people can be written again
    assert read_model_name(str(name)) == name
    check_model_name(text, "vae.model_name", TrainConfig())


@pytest.mark.parametrize(
    "text",
    [
        "/data/sdxl", "./lab/tiny", "../lab/tiny", "~/models/tiny", "models/tiny", "C:/models/tiny", "lab\\tiny",
        "lab/model.safetensors", "lab/model.ckpt", "lab/tiny.gguf", "tiny", "lab/a/b", "lab/tiny/model.bin",
        "lab/-tiny", "lab/ti ny", "lab/tiny..1", "lab/tiny@", "lab/tiny/../model.ckpt", "a[b]/c d", "~nobody/x",
        "lab/" + "x" * 300, "https://example.com/lab/tiny", "https://huggingface.co/lab",
        "https://huggingface.co/datasets/lab/tiny", "https://huggingface.co/lab/tiny/tree/main/vae",
        "https://huggingface.co/lab/tiny/blob/main/README.md", "https://huggingface.co/lab/tiny/discussions/3", " ",
    ],
)  # fmt: skip
def test_what_is_neither(text):
    with pytest.raises(UserError) as caught:
        check_model_name(text, "base_model_name", TrainConfig())
    message = str(caught.value)
    assert message.startswith("base_model_name: ") and text.strip() in message and "\n" not in message
    if "://" not in text and text.strip():
        assert "does not exist" in message and "owner/name" in message


def test_what_is_here_comes_first(tmp_path):
    (tmp_path / "lab" / "tiny").mkdir(parents=True)
    (tmp_path / "lab" / "tiny" / "there.safetensors").touch()
    assert read_model_name("lab/tiny") == Path("lab/tiny")
    assert read_model_name("lab/tiny/there.safetensors").is_file()
    assert read_model_name("lab/other") == HubName("lab/other")
    # the folder is here, so the file in it is meant
    with pytest.raises(UserError, match="does not exist; did you mean lab/tiny/there.safetensors?"):
        read_model_name("lab/tiny/their.safetensors")


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("models/tinysd", "models/tiny_sd"),
        ("./Models/TINY_SD", "models/tiny_sd"),
        ("models/dreem.safetensors", "models/dream.safetensors"),
        ("model/tiny_sd", None),
        ("./model/tiny_sd", "models/tiny_sd"),
        ("./model/nothing like it", "a folder or file in models"),
        ("models/nothing like it", None),
    ],
)
def test_similar_names_are_told(tmp_path, text, near):
    (tmp_path / "models" / "tiny_sd").mkdir(parents=True)
    (tmp_path / "models" / "dream.safetensors").touch()
    if text == "model/tiny_sd":
        # could be a repository
        assert read_model_name(text) == HubName(text)
        return
    with pytest.raises(UserError) as caught:
        read_model_name(text)
    assert (f"did you mean {near}?" in str(caught.value)) if near else "did you mean" not in str(caught.value)


def test_components_and_the_base_are_read_alike():
    config = TrainConfig.from_dict(
        {"base_model_name": "a/b", "vae": {"model_name": "c/d"}, "prior": {"model_name": "x"}}
    )
    assert named_models(config, ["unet", "vae"]) == {"base_model_name": "a/b", "vae.model_name": "c/d"}
    check_model_name("", "vae.model_name", config)
    with pytest.raises(UserError, match="vae.model_name: models/vae does not exist"):
        check_model_name("models/vae", "vae.model_name", config)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("lab/tiny-1.0@fp16", "tiny-1.0"),
        ("https://huggingface.co/lab/tiny/resolve/main/a/dream.safetensors?download=true", "dream.safetensors"),
        ("models/dream 2", "dream 2"),
    ],
)
def test_short_names(text, short):
    assert short_name(text) == short


def test_offline_only_the_cache_counts(tmp_path, monkeypatch):
    config = TrainConfig.from_dict({"offline_mode": True, "huggingface_cache_dir": str(tmp_path / "hub")})

    def refused(name: str) -> UserError:
        with pytest.raises(UserError, match="vae.model_name: .* is not in the hub's cache") as caught:
            check_model_name(name, "vae.model_name", config)
        return caught.value

    error = refused("lab/tiny-1.0")
    assert "offline_mode is on" in str(error) and str(tmp_path / "hub") in str(error)
    assert [remedy.values for remedy in error.remedies] == [(("offline_mode", False),)]
    folder = tmp_path / "hub" / "models--lab--tiny-1.0"
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    refused("lab/tiny-1.0")
    (folder / "snapshots" / COMMIT / "model_index.json").touch()
    check_model_name("lab/tiny-1.0", "vae.model_name", config)
    check_model_name(f"lab/tiny-1.0@{COMMIT}", "vae.model_name", config)
    assert cached_commit(HubName("lab/tiny-1.0"), tmp_path / "hub") == COMMIT
    refused("lab/tiny-1.0@fp16")
    refused("lab/tiny-1.0/model.safetensors")
    (folder / "snapshots" / COMMIT / "model.safetensors").touch()
    check_model_name("lab/tiny-1.0/model.safetensors", "vae.model_name", config)
    config = TrainConfig.from_dict({"huggingface_cache_dir": str(tmp_path / "hub")})
    check_model_name("lab/other", "vae.model_name", config)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in str(refused("lab/other")) and not refused("lab/other").remedies


def test_endings_are_those_of_files_that_are_read():
    assert set(WEIGHT_ENDINGS) == {".safetensors", GGUF, *PICKLES}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_name_models_that_can_be_had(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_train_config(path)
    written = json.loads(path.read_text(encoding="utf-8"))
    components = [key for key, value in written.items() if isinstance(value, dict) and "model_name" in value]
    names = named_models(config, components)
    assert names["base_model_name"] == written["base_model_name"]
    for key, name in names.items():
        check_model_name(name, key, config)
        found = read_model_name(name, key)
        if path.parent.name == "Tiny":
            assert found == Path("models/tiny_sd")
        else:
            assert found == HubName(name), f"{key}: {name}"
