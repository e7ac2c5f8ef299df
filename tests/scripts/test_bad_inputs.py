"""A corpus of bad inputs to `scripts/train.py`: one line says what is wrong, nothing is lost, never a traceback."""

import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path

from tests.load_script import load_script

import torch

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train.py"
pytestmark = pytest.mark.usefixtures("keep_signal_handlers")
LIVE = {"backup_after": 1, "backup_after_unit": "STEP"}


@pytest.fixture
def train(monkeypatch, capsys):
    """train(config path, arguments …) -> (exit code, lines of both outputs)."""
    script = load_script("train")

    def call(config: Path, *arguments: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--config-path", str(config), *arguments])
        capsys.readouterr()
        code = script.main()
        captured = capsys.readouterr()
        # progress bars end with a carriage return
        lines = [line for line in re.split(r"[\r\n]+", captured.out + "\n" + captured.err) if line.strip()]
        assert not [line for line in lines if "Traceback" in line], "\n".join(lines)
        return code, lines

    return call


def the_error(result: tuple[int, list[str]]) -> str:
    """The one error line of a run that must have failed."""
    code, lines = result
    errors = [line for line in lines if line.startswith("error:")]
    assert code == 1 and len(errors) == 1, (code, lines)
    return errors[0]


def warnings(result: tuple[int, list[str]]) -> list[str]:
    """The warnings of a run that must have ended well."""
    code, lines = result
    assert code == 0 and not [line for line in lines if line.startswith("error:")], (code, lines)
    return [line for line in lines if line.startswith("warning:")]


# ---- images ----------------------------------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    Image.effect_noise((64, 64), 80).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:700])


def one_pixel(path: Path) -> None:
    Image.new("RGB", (1, 1)).save(path)


BAD_IMAGES = {
    "truncated.jpg": (truncated, "damaged or unsupported"),
    "nothing.png": (lambda path: path.write_bytes(b""), "the file is empty"),
    "text.png": (lambda path: path.write_text("not an image"), "no image that Pillow knows"),
    "pixel.png": (one_pixel, "1x1 px is too small"),
}


@pytest.fixture
def concept(tmp_path, draw_concept) -> Path:
    draw_concept(tmp_path / "images")
    return tmp_path / "images"


def test_bad_images_are_left_out_by_name_and_the_run_goes_on(train, make_run, concept):
    for name, (write, _) in BAD_IMAGES.items():
        write(concept / name)
    (concept / "image 0.txt").unlink()
    run = make_run(own_cache=True)
    found = warnings(train(run.write(concepts=[{"path": str(concept)}], epochs=1)))
    for name, (_, reason) in BAD_IMAGES.items():
        assert len([line for line in found if str(concept / name) in line and reason in line]) == 1, found
    assert len([line for line in found if "image 0.txt" in line and "no such caption file" in line]) == 1
    assert run.output.is_file(), "the seven good ones are trained"


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_nothing_but_a_bad_image(train, mini_run, tmp_path, name):
    folder = tmp_path / "images"
    folder.mkdir()
    BAD_IMAGES[name][0](folder / name)
    error = the_error(train(mini_run.write(concepts=[{"path": str(folder)}]), "--validate"))
    assert name in error and BAD_IMAGES[name][1] in error


def test_a_caption_that_is_no_text(train, mini_run, concept):
    (concept / "image 1.txt").write_bytes(b"\xff\xfe\x00\x00")
    found = warnings(train(mini_run.write(concepts=[{"path": str(concept)}]), "--validate"))
    assert [line for line in found if "image 1.txt" in line and "UTF-8" in line]


def test_a_concept_folder_that_is_missing(train, mini_run, tmp_path):
    error = the_error(train(mini_run.write(concepts=[{"path": str(tmp_path / "nowhere")}]), "--validate"))
    assert "nowhere' does not exist" in error


# ---- config ----------------------------------------------------------------------------------------------------------

BAD_CONFIGS = {
    "a wrong type": ({"batch_size": "two"}, "batch_size"),
    "a text for a switch": ({"tensorboard": "false"}, "tensorboard"),
    "an unknown enum value": ({"learning_rate_scheduler": "COSIN"}, "COSINE"),
    "an unknown optimizer": ({"optimizer": {"optimizer": "ADAMV"}}, "ADAMW"),
    "out of bounds": ({"lora_rank": 0}, "lora_rank"),
    "an object for a list": ({"concepts": {"path": "x"}}, "concepts"),
    "a wrong type deep inside": ({"concepts": [{"path": "x", "image": {"enable_random_flip": 1}}]}, "concepts.0.image"),
    "an option that no optimizer has": ({"optimizer": {"optimizer": "PRODIGY", "fsdp_in_use": True}}, "shard_weights"),
    "an option of another optimizer": ({"optimizer": {"optimizer": "ADAMW", "momentum": 0.5}}, "optimizer.momentum"),
    "a family without code": ({"model_type": "WUERSTCHEN_2"}, "model_type"),
    "a method without code": ({"training_method": "FINE_TUNE_VAE"}, "training_method"),
    "a format that cannot hold the adapter": (
        {"peft_type": "LOHA", "output_model_format": "DIFFUSERS_LORA"}, "output_model_format",
    ),
    "a filter that selects nothing": (
        {"layer_filter_preset": "custom", "layer_filter": "no_such_layer"}, "no_such_layer",
    ),
    "a format without code": ({"output_model_format": "CKPT"}, "output_model_format"),
    "nothing to train": ({"unet": {"train": False}}, "nothing is trained"),
    "a device that is not there": ({"train_device": "cuda:99"}, "train_device"),
    "two learning rates for Prodigy": (
        {"optimizer": {"optimizer": "PRODIGY"}, "text_encoder": {"train": True, "learning_rate": 0.5}}, "PRODIGY",
    ),
    "an adapter that is missing": ({"lora_model_name": "nowhere.safetensors"}, "nowhere.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_config(train, mini_run, case):
    options, named = BAD_CONFIGS[case]
    assert named in the_error(train(mini_run.write(**options)))
    assert not mini_run.output.exists() and not mini_run.backups()


@pytest.mark.parametrize("text", ["{", "", "[1, 2]", '{"a": 1,}', "\0"])
def test_broken_json(train, tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    assert "config.json" in the_error(train(path))


def test_broken_concepts_and_samples_files(train, mini_run, tmp_path):
    (tmp_path / "broken.json").write_text("[{]")
    for key, inline in (("concept_file_name", "concepts"), ("sample_definition_file_name", "samples")):
        path = mini_run.write(**{inline: None, key: str(tmp_path / "broken.json")})
        assert "broken.json" in the_error(train(path, "--validate"))


def test_files_that_are_missing(train, mini_run, tmp_path):
    assert "nowhere.json" in the_error(train(tmp_path / "nowhere.json"))
    assert "no_secrets.json" in the_error(train(mini_run.write(), "--secrets-path", str(tmp_path / "no_secrets.json")))


def test_bad_overrides(train, mini_run):
    assert "did you mean learning_rate" in the_error(train(mini_run.write(), "--override", "learning_rat=1"))
    assert "expected key=value" in the_error(train(mini_run.write(), "--override", "learning_rate"))


def test_an_unknown_key_is_one_warning(train, mini_run):
    found = warnings(train(mini_run.write(no_such_key=1), "--validate"))
    assert len([line for line in found if "no_such_key" in line]) == 1


# ---- base model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["missing", "a folder without a model", "a torn file", "a component is missing"])
def test_a_base_model_that_cannot_be_loaded(train, mini_run, mini_base, tmp_path, what):
    path = tmp_path / "base.safetensors" if what == "a torn file" else tmp_path / "models" / "base"
    if what == "a folder without a model":
        path.mkdir(parents=True)
    elif what == "a torn file":
        path.write_bytes(b"\x10\0\0\0\0\0\0\0{torn")
    elif what == "a component is missing":
        shutil.copytree(mini_base, path)
        shutil.rmtree(path / "vae")
    assert str(path) in the_error(train(mini_run.write(base_model_name=str(path))))


@pytest.mark.parametrize(("component", "value"), [("unet", float("nan")), ("vae", float("inf"))])
def test_base_weights_that_are_not_finite(train, mini_run, mini_base, tmp_path, component, value):
    shutil.copytree(mini_base, tmp_path / "base")
    file = tmp_path / "base" / component / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[0] = value
    save_file(tensors, file, {"format": "pt"})
    error = the_error(train(mini_run.write(base_model_name=str(tmp_path / "base"))))
    assert f"{component}.{name} holds NaN or infinite values" in error and not mini_run.output.exists()


# ---- places that can't be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["output_model_destination", "workspace_dir", "cache_dir"])
def test_a_place_that_cannot_be_written(train, mini_run, tmp_path, key):
    # below a file, because root may write into any folder
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" / "lora.safetensors"
    error = the_error(train(mini_run.write(**{key: str(path)})))
    assert error.startswith(f"error: {key}: {path} can't be written")
    assert (tmp_path / "file").read_text() == "mine" and not mini_run.backups()


def test_an_output_that_is_a_folder(train, mini_run):
    mini_run.output.mkdir(parents=True)
    assert "is a folder, expected a file name" in the_error(train(mini_run.write()))


def test_an_output_that_must_not_be_overwritten(train, mini_run):
    mini_run.output.parent.mkdir(parents=True)
    mini_run.output.write_text("mine")
    assert "prevent_overwrites is on" in the_error(train(mini_run.write(prevent_overwrites=True)))
    assert mini_run.output.read_text() == "mine"


@pytest.fixture
def full_disk(monkeypatch):
    """full_disk(folder): from now on nothing written below it reaches the disk."""
    real = os.fsync

    def fill(folder: Path) -> None:
        def fsync(descriptor: int) -> None:
            if os.path.realpath(f"/proc/self/fd/{descriptor}").startswith(str(folder)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    return fill


linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds a descriptor's file through /proc")


@linux
def test_a_full_disk_while_backing_up(train, mini_run, full_disk):
    path = mini_run.write(**LIVE, epochs=2)
    mini_run.train(3, epochs=2)
    mini_run.output.unlink()
    kept = {file: file.read_bytes() for backup in mini_run.backups() for file in backup.iterdir()}
    assert kept
    full_disk(mini_run.workspace)
    assert "the disk is full" in the_error(train(path, "--override", "continue_last_backup=true"))
    assert {file: file.read_bytes() for backup in mini_run.backups() for file in backup.iterdir()} == kept


@linux
def test_a_full_disk_while_saving(train, mini_run, full_disk):
    mini_run.output.parent.mkdir(parents=True)
    mini_run.output.write_text("an older adapter")
    full_disk(mini_run.output.parent)
    error = the_error(train(mini_run.write(epochs=1)))
    assert "the disk is full" in error and "lora" in error
    assert mini_run.output.read_text() == "an older adapter"
    assert [path.name for path in mini_run.output.parent.iterdir()] == ["lora.safetensors"], "no half file is left"
    assert mini_run.backups(), "the training itself is not lost"


@linux
def test_a_full_disk_while_caching(train, make_run, monkeypatch):
    run = make_run(own_cache=True)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    error = the_error(train(run.write()))
    assert str(run.cache) in error and re.search("(?i)full|space", error)


# ---- training --------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite(train, mini_run):
    mini_run.train(2, **LIVE, epochs=1)
    kept = mini_run.backups()
    written = mini_run.output.read_bytes()
    path = mini_run.write(epochs=1, mse_strength=1e39)
    error = the_error(train(path, "--override", "continue_last_backup=true"))
    assert "The loss of step 3 is not finite" in error and ".png" in error, "step and batch are named"
    assert mini_run.backups() == kept and mini_run.output.read_bytes() == written


def test_gradients_that_are_not_finite(train, mini_run, monkeypatch):
    calls = []

    def norm(parameters, limit):
        calls.append(limit)
        return torch.tensor(float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", norm)
    error = the_error(train(mini_run.write(**LIVE, epochs=1)))
    assert "The gradient of step 2 is not finite" in error and ".png" in error
    assert len(mini_run.backups()) == 1 and not mini_run.output.exists()


def test_a_backup_of_another_adapter(train, mini_run):
    mini_run.train(1, epochs=1)
    error = the_error(train(mini_run.write(lora_rank=2), "--override", "continue_last_backup=true"))
    assert "rank is 4, expected 2" in error


def test_a_backup_of_another_optimizer(train, mini_run):
    mini_run.train(1, epochs=1, text_encoder={"train": True, "gradient_checkpointing": False})
    error = the_error(train(mini_run.write(), "--override", "continue_last_backup=true"))
    assert "backup" in error


def test_a_config_without_faults(train, mini_run):
    assert warnings(train(mini_run.write(), "--validate")) == []
    code, lines = train(mini_run.write(), "--validate")
    assert any("The config is valid: 7 images in 1 concepts" in line for line in lines)
    assert not mini_run.output.exists() and not mini_run.workspace.exists()
    assert json.loads((mini_run.root / "config.json").read_text())["batch_size"] == 2
