"""Configs that field and fuzzing found: each is refused in one line before anything is loaded, or runs well."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

from modules.util.atomic_file import write_bytes
from modules.util.config.errors import ConfigError
from modules.util.config.load import load_train_config
from modules.util.config.write_json import write_json
from modules.util.UserError import UserError
from modules.util.write_place import check_file_place, check_folder_place, check_output_place

import pytest

ROOT = Path(__file__).resolve().parents[2]


def script(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def refused(run, **options) -> str:
    """The one message with which a run is refused, before its model is looked for."""
    with pytest.raises((UserError, ConfigError)) as found:
        run.train(**options)
    assert not run.of_kind("status") and not run.workspace.exists()
    return str(found.value)


@pytest.fixture(params=["pipe", "socket", "device"])
def special(request, tmp_path):
    """What is no file, in the test's own folder."""
    path = tmp_path / "special"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        # a socket's path may be short alone
        with socket.socket(socket.AF_UNIX) as own:
            own.bind(os.path.relpath(path))
    else:
        try:
            # the numbers of a device that swallows everything
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            # who may not make one can't lose one; a pipe is refused by the same line
            os.mkfifo(path)
            return path, "a pipe"
    return path, f"a {request.param}"


def test_what_is_no_file_is_never_moved_or_replaced(mini_run, special, tmp_path):
    path, words = special
    before = os.lstat(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    for place in (path, link):
        assert f"is {words}, expected a file or a folder" in refused(mini_run, output_model_destination=str(place))
        assert f"is {words}, expected a folder" in refused(mini_run, cache_dir=str(place))
        with pytest.raises(UserError, match=f"workspace_dir: .* is {words}, expected a folder"):
            mini_run.train(workspace_dir=str(place))
        for write in (lambda place: write_bytes(place, b"x"), lambda place: write_json(place, {})):
            with pytest.raises((UserError, ConfigError), match=f"it is {words}, expected a file"):
                write(place)
        with pytest.raises(ConfigError, match=f"is {words}, expected a JSON file"):
            load_train_config(place)
    after = os.lstat(path)
    assert (after.st_mode, after.st_ino, after.st_rdev) == (before.st_mode, before.st_ino, before.st_rdev)
    assert sorted(found.name for found in tmp_path.glob("special*")) == ["special"]


@pytest.mark.parametrize("check", [check_file_place, check_folder_place, check_output_place])
@pytest.mark.parametrize("text", ["   ", "a/ /b", "a/\t", "/ /x", "a\0b"])
def test_no_part_of_a_path_is_blank(check, text):
    with pytest.raises(UserError, match="key: .*(name of blanks|null byte)"):
        check(Path(text), "key")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"output_model_destination": "   "}, "output_model_destination"),
        ({"output_model_destination": "out/   "}, "output_model_destination: 'out/   ' has a name of blanks"),
        ({"output_model_destination": "a\0b.safetensors"}, "output_model_destination: found a text with a null byte"),
        ({"workspace_dir": "a\0b"}, "workspace_dir: found a text with a null byte"),
        ({"concepts": [{"path": "a\0b"}]}, "concepts.0.path: found a text with a null byte"),
        (
            {"concepts": [{"path": "x", "text": {"prompt_source": "concept", "prompt_path": "a\0b"}}]},
            "concepts.0.text.prompt_path: found a text with a null byte",
        ),
        ({"samples": [{"base_image_path": "a\0b"}]}, "samples.0.base_image_path: found a text with a null byte"),
        ({"save_filename_prefix": "../../../escaped-"}, "save_filename_prefix: found .*'/' is in it"),
        ({"save_filename_prefix": "/tmp/absolute-"}, "save_filename_prefix"),
        ({"save_filename_prefix": "a\\b"}, "save_filename_prefix"),
        ({"save_filename_prefix": "a\nb"}, "save_filename_prefix"),
        ({"lora_rank": 10**9}, "lora_rank: found 1000000000, expected a whole number from 1 to"),
        ({"epochs": 10**9}, "epochs: found 1000000000"),
        ({"train_device": "meta"}, "train_device: 'meta' is not a usable device"),
        ({"train_device": "cuda:99"}, "train_device"),
        ({"temp_device": "null"}, "temp_device: 'null' is not a usable device here; expected cpu, or cuda"),
        ({"temp_device": "\\"}, "temp_device"),
        ({"temp_device": "meta"}, "temp_device"),
        ({"temp_device": ""}, "temp_device"),
        ({"samples": [{"prompt": "x", "width": 10**9}]}, "samples.0.width"),
        ({"samples": [{"prompt": "x", "diffusion_steps": 10**9}]}, "samples.0.diffusion_steps"),
        (
            {"learning_rate_scheduler": "CUSTOM", "learning_rate_warmup_steps": 200,
             "custom_learning_rate_scheduler": "torch.optim.lr_scheduler.StepLR",
             "scheduler_params": [{"key": "step_size", "value": 0}]},
            "scheduler_params: StepLR refuses step_size=0",
        ),
        (
            {"optimizer": {"optimizer": "PRODIGY"}, "learning_rate": 1.0,
             "text_encoder": {"train": True, "learning_rate": 0.5}},
            "PRODIGY finds one learning rate for everything, found unet 1, text_encoder 0.5",
        ),
    ],
)  # fmt: skip
def test_the_config_alone_shows_it(mini_run, options, text):
    import re

    assert re.search(text, refused(mini_run, **options))


def test_more_ranks_than_the_model_has_are_refused_before_its_weights_are_read(make_run):
    mini_run = make_run(own_cache=True)
    with pytest.raises(UserError, match="lora_rank: found 4000, expected at most [0-9]+, which is the full rank"):
        mini_run.train(lora_rank=4000)
    assert not (mini_run.cache / "latents").exists()


def test_balancing_that_never_ends_is_refused_after_the_images_are_counted(mini_run):
    with pytest.raises(UserError, match="concepts.0.balancing: found 1e.12, with which 7 images give"):
        mini_run.train(concepts=[{"path": str(mini_run.concept), "balancing": 1e12}])


def test_samples_that_were_all_left_out_do_not_end_a_run(mini_run, monkeypatch):
    monkeypatch.setattr(
        "modules.trainer.SampleRounds.draw_samples", lambda model, samples, *rest: [None] * len(samples)
    )
    sample = {"prompt": "x", "width": 32, "height": 32, "diffusion_steps": 1}
    report = mini_run.train(samples=[sample], sample_after=1, sample_after_unit="EPOCH", epochs=2)
    assert report["finished"] and mini_run.output.is_file()
    assert not list(mini_run.workspace.glob("before_after.*"))


@pytest.mark.parametrize(
    "content", [b'{"huggingface_token": "\xe9"}', b"[1]", b"", b"[" * 10**6, b'{"huggingface_token": 5}', b"null"]
)
def test_a_secrets_file_that_is_none_is_named(mini_run, tmp_path, content):
    config, secrets = mini_run.write(), tmp_path / "secrets.json"
    secrets.write_bytes(content)
    done = script("--config-path", str(config), "--secrets-path", str(secrets), "--validate")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and ("secrets" in lines[0])


@pytest.mark.parametrize("index", ["1" * 5000, "9" * 20, "-1", "²", "1e3"])
def test_an_override_of_an_entry_that_is_not_there(mini_run, index):
    with pytest.raises(ConfigError, match="there is no such entry"):
        load_train_config(mini_run.write(), [f"concepts.{index}.path=x"])


@pytest.mark.usefixtures("forked_scripts")
def test_stopped_before_the_first_backup_it_says_so(mini_run):
    mini_run.write(epochs=5000)
    process = mini_run.start()
    try:
        deadline = time.monotonic() + 200
        while "loss=" not in mini_run.log and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        status = process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
    log = mini_run.log
    assert "Traceback" not in log
    if status == 130:
        assert "Stopped without saving; there is no backup of this run." in log and not mini_run.backups()
    else:
        # the first was heard before the second, which came too late to end it at once
        assert status == 0 and mini_run.backups()


@pytest.mark.usefixtures("forked_scripts")
def test_a_workspace_that_is_removed_meanwhile_ends_no_run(mini_run):
    mini_run.write(epochs=25, backup_after=1, backup_after_unit="STEP")
    process = mini_run.start()
    try:
        deadline = time.monotonic() + 200
        while len(mini_run.backups()) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, mini_run.log
        shutil.rmtree(mini_run.workspace, ignore_errors=True)
        status = process.wait(timeout=200)
    finally:
        process.kill()
        process.wait()
    assert status in (0, 1) and "Traceback" not in mini_run.log, mini_run.log
    assert status or mini_run.output.is_file()
    assert status == 0 or [line for line in mini_run.log.splitlines() if line.startswith("error:")]


def test_tokens_in_unknown_keys_are_in_no_file_of_a_run(mini_run):
    mini_run.train(
        epochs=1, huggingface_token="hf_SECRET", include_train_config="ALL", backup_after=1, backup_after_unit="STEP",
        unet={"gradient_checkpointing": False, "api_key": "SECRET"}, save_every=1, save_every_unit="EPOCH",
    )  # fmt: skip
    files = [path for path in mini_run.root.rglob("*") if path.is_file() and path.name != "config.json"]
    files += list(mini_run.workspace.rglob("config.json"))
    assert len(files) > 10 and not [path for path in files if b"SECRET" in path.read_bytes()]
    assert "SECRET" not in json.dumps([values.get("text") for _, values in mini_run.events])
