"""Whole runs with a base model from the hub: a server of our own, the script, the cache, and no network at all."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.modelSaver.save_model import write_checkpoint
from modules.tool import sample_tool
from modules.util.config.load import train_config_from_dict
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError
from tests.hub_server import HubServer

import torch

import pytest
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
TINY = ROOT / "models" / "tiny_sd"
NAME = "some-lab/tiny-model-1.0"
# 7 images in 4 batches: 2 steps
TWO_STEPS = {"epochs": 1, "gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def server():
    running = HubServer()
    running.add(NAME, TINY)
    yield running
    running.close()


@pytest.fixture
def asked(server, monkeypatch):
    """Lets the library of this process ask the server."""
    server.requests.clear()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return server


def script(run, home: Path, server: HubServer) -> tuple[int, str]:
    """Status and output of `scripts/train.py` on the run's config."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TQDM"))}
    environment |= {"HF_ENDPOINT": server.url, "HOME": str(home), "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), "--config-path", str(run.root / "config.json")],
        capture_output=True, text=True, env=environment, cwd=run.root, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def assert_same_result(one, other) -> None:
    ours, theirs = (load_file(run.output) for run in (one, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_script_trains_with_a_name_on_the_hub_and_then_offline(make_run, server, tmp_path, monkeypatch):
    home, cache = tmp_path / "home", tmp_path / "hub"
    home.mkdir()
    options = {**TWO_STEPS, "huggingface_cache_dir": str(cache), "base_model_name": NAME}
    local, online, offline = (make_run(name) for name in ("local", "online", "offline"))
    online.write(**options)
    before = files_in(online.root)
    status, output = script(online, home, server)
    assert status == 0 and "2 steps" in output, output
    assert f"downloading unet of {NAME}: 100%" in output and "B/s" in output
    assert "diffusion_pytorch_model.safetensors:" not in output, "the library draws no bars of its own"
    assert not files_in(home), "nothing is written but into the named cache"
    assert all(name.startswith(("work space", "out")) for name in files_in(online.root) - before)
    fetched = server.fetched()
    assert sorted(fetched) == sorted(files_in(TINY)), "each file is fetched once"
    local.train(**TWO_STEPS, base_model_name=str(TINY))
    assert_same_result(online, local)

    server.requests.clear()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    offline.train(**options, offline_mode=True)
    assert_same_result(offline, local)
    assert not [event for event in offline.of_kind("progress") if "downloading" in event["stage"]]
    shutil.rmtree(next(cache.glob("models--*")))
    with pytest.raises(UserError, match=f"{NAME} is not in the hub's cache {cache}, and offline_mode is on"):
        offline.train(**options, offline_mode=True)
    assert not server.requests


def test_a_single_file_on_the_hub(make_run, mini_base, asked, tmp_path):
    config = train_config_from_dict(make_run("made").options())
    model = family_of(config).load(config, torch.device("cpu"))
    tensors = model.checkpoint_tensors(ModelFormat.ORIGINAL_SINGLE_FILE)
    path = tmp_path / "made" / "tiny.safetensors"
    write_checkpoint(path, tensors, lambda component: model.components[component].state_dict(), None, {})
    settings = {f"tiny.config/{file}": (mini_base / file).read_bytes() for file in files_in(mini_base)
                if not file.endswith(".safetensors")}  # fmt: skip
    asked.add("some-lab/files", {"tiny.safetensors": path.read_bytes(), **settings})
    folder, file = make_run("folder"), make_run("file")
    folder.train(**TWO_STEPS)
    address = f"{asked.url}/some-lab/files/resolve/main/tiny.safetensors?download=true"
    file.train(**TWO_STEPS, huggingface_cache_dir=str(tmp_path / "hub"), base_model_name=address)
    assert_same_result(file, folder)
    assert safe_open(file.output, "pt").metadata()["ss_sd_model_name"] == "tiny.safetensors"
    told = [event for event in file.of_kind("progress") if event["stage"].startswith("downloading")]
    assert {event["stage"] for event in told} == {
        "downloading tiny.safetensors of some-lab/files", "downloading the configuration of some-lab/files",
    }  # fmt: skip
    assert all(event["unit"] == "bytes" and 0 <= event["done"] <= event["total"] for event in told)
    assert told[-1]["done"] == told[-1]["total"] == path.stat().st_size


def test_a_run_that_goes_on_stays_at_its_commit(make_run, asked, tmp_path):
    first = asked.add("some-lab/moving", TINY)
    options = {**TWO_STEPS, "huggingface_cache_dir": str(tmp_path / "hub"), "base_model_name": "some-lab/moving",
               "cache_dir": str(tmp_path / "cache")}  # fmt: skip
    whole, cut = make_run("whole"), make_run("cut")
    whole.train(**options)
    cut.train(stop_after=1, **options)
    assert len(cut.backups()) == 1
    broken = {file: b"{}" if file.endswith(".json") else b"x" for file in files_in(TINY)}
    assert asked.add("some-lab/moving", broken) != first
    cut.train(**options, continue_last_backup=True)
    assert cut.digest() == whole.digest()
    with pytest.raises(UserError):
        make_run("new").train(**options)


def test_a_whole_model_is_saved_that_came_from_the_hub(mini_run, asked, tmp_path):
    options = {"training_method": "FINE_TUNE", "output_model_format": "DIFFUSERS", "output_dtype": "FLOAT_32",
               "output_model_destination": str(tmp_path / "tuned")}  # fmt: skip
    mini_run.train(**TWO_STEPS, **options, base_model_name=NAME, huggingface_cache_dir=str(tmp_path / "hub"))
    assert files_in(tmp_path / "tuned") >= files_in(TINY)
    config = train_config_from_dict(mini_run.options(base_model_name=str(tmp_path / "tuned")))
    model = family_of(config).load(config, torch.device("cpu"))
    weights = load_file(TINY / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.components["vae"].state_dict().items())
    assert model.components["unet"].conv_in.bias.isfinite().all()


def test_stop_ends_a_download_before_the_first_step(mini_run, asked, tmp_path, monkeypatch):
    monkeypatch.setattr("modules.model.hub.REPORT_INTERVAL", 0.0)
    trainer = mini_run.trainer(base_model_name=NAME, huggingface_cache_dir=str(tmp_path / "hub"))

    def stop_in_the_middle(kind: str, values: dict) -> None:
        if kind == "progress" and "unet" in values["stage"] and values["done"] > 1_000_000:
            trainer.commands.stop = True

    trainer.events.listeners.append(stop_in_the_middle)
    assert trainer.run() == {}
    assert "what was downloaded so far is kept" in mini_run.of_kind("status")[-1]["text"]
    partial = list((tmp_path / "hub").rglob("*.incomplete"))
    assert len(partial) == 1 and partial[0].stat().st_size >= 1_000_000
    assert not mini_run.output.exists()


def test_images_are_drawn_with_a_name_on_the_hub(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    told, downloads = [], []
    wishes = sample_tool.Wishes(
        base=NAME, output=tmp_path / "images", device="cpu",
        sample={"prompt": "a red lumo", "width": 32, "height": 32, "diffusion_steps": 1, "seed": 1},
    )  # fmt: skip
    assert sample_tool.draw_images(wishes, told.append, on_download=lambda *event: downloads.append(event)) == 0
    assert len(list((tmp_path / "images").iterdir())) == 1 and f"model: {NAME} (STABLE_DIFFUSION_15) on cpu" in told
    assert f"downloading vae of {NAME}" in {stage for stage, _, _ in downloads}


def test_adapters_are_looked_at_with_a_name_on_the_hub(mini_run, asked, tmp_path, monkeypatch, capsys):
    from scripts import convert_adapter

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    mini_run.train(**TWO_STEPS, base_model_name=NAME)
    target = tmp_path / "merged"
    assert convert_adapter.main([str(mini_run.output), "--info", "--base", NAME]) == 0
    assert convert_adapter.main([str(mini_run.output), str(target), "--merge", "--base", NAME]) == 0
    assert files_in(TINY) - files_in(target) == set() and not (target / "unet").is_symlink()
    assert all(not path.is_symlink() for path in target.rglob("*"))
    made = tmp_path / "difference.safetensors"
    assert convert_adapter.main([str(made), "--extract", NAME, str(target), "--rank", "2"]) == 0 and made.is_file()
    assert convert_adapter.main([str(mini_run.output), "--info", "--base", "nobody/nothing"]) == 1
    assert "--base: the hub has no repository nobody/nothing" in capsys.readouterr().err
