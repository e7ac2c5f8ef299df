"""Models from the hub, against a server of our own: what is fetched and when, cut downloads, and errors in words."""

import errno
import json
import os
import shutil
import threading
from pathlib import Path

from modules.model import hub_transfer
from modules.model.BaseModel import family_of
from modules.model.hub import Hub, Snapshot, check_hub_name
from modules.model.ModelSource import FolderSource, replaced_component
from modules.model.recognize_model import find_model_type
from modules.model.reference_naming import base_place, load_base
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError
from tests.hub_server import GOOD_TOKEN, STRANGERS_TOKEN, HubServer

import torch

import pytest
from diffusers import UNet2DConditionModel
from huggingface_hub import constants, hf_hub_download
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

TINY = Path(__file__).parents[2] / "models" / "tiny_sd"
MODEL = "some-lab/tiny-model-1.0"
KEY = "base_model_name"
CPU = torch.device("cpu")
WEIGHTS = os.urandom(300_000)


@pytest.fixture(scope="module")
def running():
    server = HubServer()
    yield server
    server.close()


@pytest.fixture
def server(running, monkeypatch, tmp_path):
    """The server, with no repositories yet and with nothing to go wrong; the library asks it, and nobody else."""
    for name in ("repositories", "requests", "cuts", "statuses"):
        getattr(running, name).clear()
    running.ranges = True
    monkeypatch.setattr(constants, "ENDPOINT", running.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "library's cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    no_pauses(monkeypatch, 4)
    return running


def no_pauses(monkeypatch, attempts: int) -> None:
    for module in ("hub_transfer", "hub"):
        monkeypatch.setattr(f"modules.model.{module}.PAUSES", (0.0,) * attempts)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def make_config(cache):
    """make_config(name, **options) -> a config of a model whose cache is the test's own."""

    def make(name: str = MODEL, token: str = "", **options) -> TrainConfig:
        return TrainConfig.from_dict(
            {"base_model_name": name, "huggingface_cache_dir": str(cache), "secrets": {"huggingface_token": token},
             **options}
        )  # fmt: skip

    return make


@pytest.fixture
def make_snapshot(make_config):
    """make_snapshot(progress) -> a repository with a large file, as a new run sees it."""

    def make(progress=lambda *_: None, name: str = MODEL, **options) -> Snapshot:
        snapshot = Hub(make_config(name, **options), progress).place(name, KEY)
        assert isinstance(snapshot, Snapshot)
        return snapshot

    return make


def load(config: TrainConfig, hub: Hub | None = None):
    model = family_of(config).load(config, CPU, hub)
    model.components.load_all()
    return model


def refused(action, *words: str) -> UserError:
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    return caught.value


def starts(server) -> list[int]:
    return [request.start for request in server.requests if request.of_storage]


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# -- what is fetched -------------------------------------------------------------------------------------------------


def test_a_model_is_the_same_as_its_folder_and_comes_bit_by_bit(server, make_config, cache, monkeypatch):
    clutter = ("flax_model.msgpack", "model.onnx", "openvino_model.bin", "diffusion_pytorch_model.fp16.safetensors",
               "diffusion_pytorch_model.bin", "model.fp16.safetensors", "pytorch_model.bin")  # fmt: skip
    files = {path.relative_to(TINY).as_posix(): path.read_bytes() for path in TINY.rglob("*") if path.is_file()}
    unneeded = {f"{component}/{file}": b"x" for component in ("unet", "vae", "text_encoder") for file in clutter}
    commit = server.add(MODEL, {**files, **unneeded, "tiny.ckpt": b"x", "README.md": b"x", "onnx/model.onnx": b"x"})
    events: list[tuple[str, int, int]] = []
    config = make_config()
    hub = Hub(config, lambda *event: events.append(event))
    monkeypatch.setattr("modules.model.hub.REPORT_INTERVAL", 0.0)
    assert find_model_type(config, hub) == ModelType.STABLE_DIFFUSION_15
    assert server.fetched() == ["model_index.json"]
    model = family_of(config).load(config, CPU, hub)
    model.adapter_naming()
    assert not [file for file in server.fetched() if file.endswith(".safetensors")], "no weights are needed yet"
    model.components["vae"]
    assert [file for file in server.fetched() if file.endswith(".safetensors")] == [
        "vae/diffusion_pytorch_model.safetensors"
    ]
    model.components.load_all()
    local = load(make_config(str(TINY)))
    for component in model.modules:
        for ours, theirs in zip(*(m.components[component].state_dict().values() for m in (model, local)), strict=True):
            assert torch.equal(ours, theirs)
    assert sorted(server.fetched()) == sorted(files), "each file once, and nothing else"
    assert files_in(cache / "models--some-lab--tiny-model-1.0" / "snapshots" / commit) == set(files)
    assert {stage for stage, _, _ in events} == {
        f"downloading {what} of {MODEL}" for what in ("the configuration", *model.modules)
    }
    size = (TINY / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    told = [(done, total) for stage, done, total in events if stage == f"downloading unet of {MODEL}"]
    assert told == sorted(told) and len(told) > 10 and told[-1] == (size, size) and told.count((size, size)) == 1
    server.requests.clear()
    load(config, Hub(config, lambda *event: pytest.fail(f"nothing is left to do: {event}")))
    assert [request.path for request in server.requests] == [f"/api/models/{MODEL}/revision/main"]


def make_component(server, kind: str, folder: Path, **options) -> None:
    """A repository whose UNet, or text encoder, is saved otherwise."""
    component, loader = ("unet", UNet2DConditionModel) if kind == "diffusers" else ("text_encoder", CLIPTextModel)
    shutil.copytree(TINY, folder)
    shutil.rmtree(folder / component)
    module = loader.from_pretrained(TINY / component)
    if options.pop("pickled", False):
        name = "diffusion_pytorch_model.bin" if component == "unet" else "pytorch_model.bin"
        (folder / component).mkdir()
        shutil.copy(TINY / component / "config.json", folder / component)
        torch.save(module.state_dict(), folder / component / name)
    else:
        module.save_pretrained(folder / component, **options)
    server.add(MODEL, folder)


@pytest.mark.parametrize("kind", ["diffusers", "transformers"])
@pytest.mark.parametrize(
    "options", [{"variant": "fp16"}, {"max_shard_size": "700KB"}, {"pickled": True},
                {"variant": "fp16", "max_shard_size": "700KB"}], ids=str,
)  # fmt: skip
def test_weights_in_every_form(server, make_config, tmp_path, kind, options):
    make_component(server, kind, tmp_path / "made", **options)
    component, loader = ("unet", UNet2DConditionModel) if kind == "diffusers" else ("text_encoder", CLIPTextModel)
    shards = 0 if "max_shard_size" not in options else 2
    assert len(list((tmp_path / "made" / component).glob("*-of-*"))) >= shards
    expected = loader.from_pretrained(TINY / component).state_dict()
    for place in (Hub(make_config()).place(MODEL, KEY), tmp_path / "made"):
        state = FolderSource(place, {component: loader}).module(component, torch.float32).state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_a_component_without_weights_and_a_broken_list(server, make_config, tmp_path):
    make_component(server, "diffusers", tmp_path / "made", max_shard_size="700KB")
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    files = {path: (tmp_path / "made" / path).read_bytes() for path in files_in(tmp_path / "made")}
    server.add("lab/broken", {**files, index: json.dumps({"weight_map": {"a": "../../x.safetensors"}}).encode()})
    refused(lambda: load(make_config("lab/broken")), "lab/broken", index, "names none")
    server.add("lab/half", {path: data for path, data in files.items() if "00002-of" not in path})
    refused(lambda: load(make_config("lab/half")), "lab/half has no file unet/", "00002-of")
    server.add("lab/empty", {path: data for path, data in files.items() if not path.startswith("unet/diff")})
    refused(lambda: load(make_config("lab/empty")), "lab/empty has no weights of unet")


def test_components_from_elsewhere(server, make_config):
    """A whole model, a component's own repository, and a file of it."""
    server.add("lab/whole", TINY)
    server.add("lab/vae-only", TINY / "vae")
    vae = TINY / "vae" / "diffusion_pytorch_model.safetensors"
    server.add("lab/files", {"vae/best.safetensors": vae.read_bytes()})
    for name in ("lab/whole", "lab/vae-only", "lab/files/vae/best.safetensors"):
        config = make_config(str(TINY), vae={"model_name": name})
        server.requests.clear()
        model = family_of(config).load(config, CPU)
        assert model.layers_of("vae").config.latent_channels == 8
        assert not server.fetched() or server.fetched() == [f"{'vae/' if name == 'lab/whole' else ''}config.json"]
        state = model.components["vae"].state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in load_file(vae).items())
        assert not any(file.startswith("unet") for file in server.fetched())
    config = make_config(str(TINY), unet={"model_name": "lab/vae-only@nowhere"})
    refused(lambda: load(config), "unet.model_name: lab/vae-only has no revision nowhere")
    server.add("lab/other", {"README.md": b"x"})
    config = make_config(str(TINY), unet={"model_name": "lab/other"})
    refused(
        lambda: replaced_component(config, "unet", UNet2DConditionModel, Hub(config)), "unet.model_name: lab/other has"
    )


def test_a_single_file_and_the_folder_that_describes_it(server, make_config, tmp_path, small_folder, small_tensors):
    path = tmp_path / "dream.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in small_tensors.items()}, path)
    files = {f"a/dream.config/{file}": (small_folder / file).read_bytes() for file in files_in(small_folder)}
    server.add("lab/files", {"a/dream.safetensors": path.read_bytes(), "a/other.safetensors": b"x", **files})
    name = "https://huggingface.co/lab/files/blob/main/a/dream.safetensors?download=true"
    model = load(make_config(name))
    expected = load(make_config(str(small_folder)))
    for component in model.modules:
        for ours, theirs in zip(
            *(m.components[component].state_dict().values() for m in (model, expected)), strict=True
        ):
            assert torch.equal(ours, theirs)
    assert not [file for file in server.fetched() if file.startswith("a/dream.config") and file.endswith("tensors")]
    assert "a/other.safetensors" not in server.fetched()
    # for a plan of the run the weights are not worth the wait
    config = make_config("lab/files/a/other.safetensors")
    refused(lambda: family_of(config).load(config, CPU, Hub(config, settings_only=True)), "which are not fetched")
    config = make_config("lab/files")
    refused(lambda: load(config), "has no model_index.json", "Name another one")


def test_a_repository_of_single_files_is_told(server, make_config):
    server.add("lab/files", {"dream.safetensors": b"x", "README.md": b"x"})
    words = ("base_model_name: lab/files has no model_index.json", "lab/files/dream.safetensors")
    refused(lambda: load(make_config("lab/files")), *words)
    refused(lambda: check_hub_name("lab/files", KEY, make_config("lab/files")), *words)
    refused(lambda: load(make_config("lab/files/dreem.safetensors")), "did you mean dream.safetensors?")
    server.add(MODEL, {"model_index.json": (TINY / "model_index.json").read_bytes(), "unet/config.json": b"{}"})
    refused(lambda: load(make_config()), f"{MODEL} is incomplete", "vae", "tokenizer")


def test_tools_fetch_what_they_need(server, make_config):
    server.add(MODEL, TINY)
    hub = Hub(make_config())
    folder = base_place(MODEL, "--base", hub, weights=False)
    assert (folder / "unet" / "config.json").is_file() and not list(folder.glob("*/*.safetensors"))
    folder = base_place(MODEL, "--base", hub)
    assert sorted(path.parent.name for path in folder.glob("*/*.safetensors")) == ["text_encoder", "unet"]
    assert set(load_base(folder).components) == {"unet", "text_encoder"}
    assert len(list(base_place(MODEL, "--base", hub, whole=True).glob("*/*.safetensors"))) == 3
    refused(lambda: base_place("nobody/nothing", "--base", hub), "--base: the hub has no repository nobody/nothing")
    assert base_place(str(TINY), "--base", hub) == TINY


# -- one commit ------------------------------------------------------------------------------------------------------


def test_a_run_stays_at_one_commit(server, make_config, cache):
    first = server.add(MODEL, TINY)
    config = make_config()
    hub = Hub(config)
    model = family_of(config).load(config, CPU, hub)
    files = {file: (TINY / file).read_bytes() for file in files_in(TINY)}
    state = load_file(TINY / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({name: tensor + 1 for name, tensor in state.items()}, cache.parent / "new.safetensors")
    new = (cache.parent / "new.safetensors").read_bytes()
    second = server.add(MODEL, {**files, "unet/diffusion_pytorch_model.safetensors": new})
    name = "conv_in.bias"
    assert torch.equal(model.components["unet"].state_dict()[name], state[name])
    assert hub.pins == {MODEL: first}
    model.components.load_all()
    server.requests.clear()
    later = Hub(config)
    assert torch.equal(load(config, later).components["unet"].state_dict()[name], state[name] + 1)
    assert later.pins == {MODEL: second}
    assert len(starts(server)) == 1, "what has not changed is not fetched again"
    # a run that goes on stays where it began; so does one whose user names the commit
    assert Hub(config, pins=hub.pins).place(MODEL, KEY).commit == first
    assert Hub(config).place(f"{MODEL}@{first}", KEY).commit == first
    pinned = Hub(config, pins={MODEL: "0" * 40})
    refused(lambda: pinned.place(MODEL, KEY), "has the commit 0000000", f"{MODEL}@main")


def test_a_branch(server, make_snapshot):
    server.add(MODEL, {"x.safetensors": b"main"})
    commit = server.add(MODEL, {"x.safetensors": b"branch"}, revision="refs/pr/1")
    snapshot = make_snapshot(name=f"{MODEL}@refs/pr/1")
    assert snapshot.commit == commit and snapshot.fetch_file("x.safetensors").read_bytes() == b"branch"
    assert make_snapshot(name=f"{MODEL}@refs/pr/1", offline_mode=True).commit == commit


# -- cut downloads ---------------------------------------------------------------------------------------------------


def test_a_download_that_is_cut_goes_on_within_a_run(server, make_snapshot):
    server.add(MODEL, {"w.safetensors": WEIGHTS})
    server.cuts = [100_000, 100_000]
    events = []
    path = make_snapshot(lambda *event: events.append(event)).fetch_file("w.safetensors")
    assert path.read_bytes() == WEIGHTS and starts(server) == [0, 100_000, 200_000]
    assert events[-1] == (f"downloading w.safetensors of {MODEL}", 300_000, 300_000)
    assert [done for _, done, _ in events] == sorted(done for _, done, _ in events)


def test_a_download_that_is_cut_goes_on_in_the_next_run(server, make_snapshot, monkeypatch, cache):
    server.add(MODEL, {"a.safetensors": WEIGHTS[:5000], "w.safetensors": WEIGHTS})
    no_pauses(monkeypatch, 0)
    server.cuts = [5000, 150_000]
    snapshot = make_snapshot()
    refused(lambda: snapshot.fetch(["a.safetensors", "w.safetensors"], "unet"), "received 150000 bytes", "is kept")
    assert [path.stat().st_size for path in cache.rglob("*.incomplete")] == [150_000]
    assert not (snapshot.folder / "w.safetensors").exists() and (snapshot.folder / "a.safetensors").exists()
    server.requests.clear()
    events = []
    snapshot = make_snapshot(lambda *event: events.append(event))
    snapshot.fetch(["a.safetensors", "w.safetensors"], "unet")
    assert starts(server) == [150_000], "what was finished is not fetched again"
    assert (snapshot.folder / "w.safetensors").read_bytes() == WEIGHTS
    assert events[0][1:] == (150_000, 300_000) and events[-1][1:] == (300_000, 300_000)
    assert not list(cache.rglob("*.incomplete"))


def test_it_gives_up_when_nothing_more_comes(server, make_snapshot, monkeypatch):
    server.add(MODEL, {"w.safetensors": WEIGHTS})
    no_pauses(monkeypatch, 2)
    server.cuts = [100, *[0] * 10]
    refused(lambda: make_snapshot().fetch_file("w.safetensors"), "received 0 bytes", "Try again")
    assert starts(server) == [0, 100, 100], "as often as there are pauses after the last one that brought something"


def test_an_interrupted_download_goes_on(server, make_snapshot, monkeypatch):
    server.add(MODEL, {"w.safetensors": WEIGHTS})
    monkeypatch.setattr("modules.model.hub.REPORT_INTERVAL", 0.0)

    def interrupt(stage: str, done: int, total: int) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_snapshot(interrupt).fetch_file("w.safetensors")
    assert make_snapshot().fetch_file("w.safetensors").read_bytes() == WEIGHTS
    assert starts(server)[0] == 0 < 100_000 < starts(server)[1]


@pytest.mark.parametrize("case", ["no ranges", "damaged", "too long", "complete"])
def test_whatever_is_there_of_a_file_its_bytes_are_right(server, make_snapshot, cache, case):
    server.add(MODEL, {"w.safetensors": WEIGHTS})
    server.ranges = case != "no ranges"
    there = {"no ranges": WEIGHTS[:1000], "damaged": b"x" * 1000, "too long": b"x" * 400_000, "complete": WEIGHTS}[case]
    snapshot = make_snapshot()
    blob = cache / "models--some-lab--tiny-model-1.0" / "blobs" / snapshot._files["w.safetensors"].etag
    blob.parent.mkdir(parents=True)
    blob.with_name(f"{blob.name}.incomplete").write_bytes(there)
    assert snapshot.fetch_file("w.safetensors").read_bytes() == WEIGHTS == blob.read_bytes()
    expected = {"no ranges": [1000], "damaged": [1000, 0], "too long": [0], "complete": []}
    assert starts(server) == expected[case]


def test_a_server_that_sends_damaged_pieces_is_told(server, make_snapshot, cache):
    server.add(MODEL, {"w.safetensors": WEIGHTS})
    snapshot = make_snapshot()
    object.__setattr__(snapshot._files["w.safetensors"], "sha256", "0" * 64)
    server.cuts = [1000, 400_000, 1000]
    refused(lambda: snapshot.fetch_file("w.safetensors"), "arrives damaged")
    assert not (snapshot.folder / "w.safetensors").exists() and not list(cache.rglob("*.incomplete"))


def test_of_two_runs_at_once_one_fetches(server, make_snapshot):
    server.add(MODEL, {"w.safetensors": WEIGHTS})
    snapshots = [make_snapshot(), make_snapshot()]
    threads = [threading.Thread(target=snapshot.fetch_file, args=["w.safetensors"]) for snapshot in snapshots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert starts(server) == [0] and (snapshots[0].folder / "w.safetensors").read_bytes() == WEIGHTS


# -- the cache -------------------------------------------------------------------------------------------------------


def test_the_cache_is_shared_with_the_library(server, make_snapshot, cache):
    server.add(MODEL, {"a.safetensors": WEIGHTS, "b.safetensors": WEIGHTS[1:], "c.json": b"{}"})
    ours = make_snapshot()
    ours.fetch(["a.safetensors", "c.json"], "unet")
    for file in ("a.safetensors", "c.json"):
        assert hf_hub_download(MODEL, file, cache_dir=cache, local_files_only=True) == str(ours.folder / file)
    hf_hub_download(MODEL, "b.safetensors", cache_dir=cache)
    server.requests.clear()
    assert make_snapshot().fetch_file("b.safetensors").read_bytes() == WEIGHTS[1:] and not server.fetched()


def test_disks_without_links(server, make_snapshot, monkeypatch):
    server.add(MODEL, {"w.safetensors": WEIGHTS})
    monkeypatch.setattr(os, "symlink", lambda *args: (_ for _ in ()).throw(OSError("no links here")))
    path = make_snapshot().fetch_file("w.safetensors")
    assert path.read_bytes() == WEIGHTS and not path.is_symlink()
    assert make_snapshot().fetch_file("w.safetensors") == path and starts(server) == [0]


@pytest.mark.parametrize("case", ["too large", "no etag"])
def test_what_http_does_not_give_out_is_left_to_the_library(server, make_snapshot, monkeypatch, case):
    server.add(MODEL, {"w.safetensors": WEIGHTS})
    if case == "too large":
        monkeypatch.setattr("modules.model.hub.LARGEST_OVER_HTTP", 1000)
    monkeypatch.setattr("modules.model.hub.REPORT_INTERVAL", 0.0)
    events = []
    snapshot = make_snapshot(lambda *event: events.append(event))
    if case == "no etag":
        object.__setattr__(snapshot._files["w.safetensors"], "etag", "")
    assert snapshot.fetch_file("w.safetensors").read_bytes() == WEIGHTS
    assert events[-1][1:] == (300_000, 300_000)
    assert [request.method for request in server.requests] == ["GET", "HEAD", "GET"]


def test_offline(server, make_config, make_snapshot, cache):
    server.add(MODEL, TINY)
    words = (f"base_model_name: {MODEL} is not in the hub's cache", "offline_mode is on")
    error = refused(lambda: load(make_config(offline_mode=True)), *words)
    assert error.remedies and not server.requests
    family_of(make_config()).load(make_config(), CPU)
    server.requests.clear()
    words = ("lacks unet/diffusion_pytorch_model.safetensors", "offline_mode")
    refused(
        lambda: make_snapshot(offline_mode=True).fetch(["unet/diffusion_pytorch_model.safetensors"], "unet"), *words
    )
    refused(lambda: load(make_config(offline_mode=True)), "lacks the weights of unet in", "offline_mode is on")
    other = make_config(str(TINY), offline_mode=True, prior={"model_name": MODEL})
    refused(
        lambda: replaced_component(other, "prior", UNet2DConditionModel, Hub(other)), "lacks the component prior in"
    )
    shutil.rmtree(next(cache.glob("models--*/snapshots/*/vae")))
    refused(lambda: load(make_config(offline_mode=True)), "lacks vae in")
    load(make_config())
    server.requests.clear()
    load(make_config(offline_mode=True))
    check_hub_name(MODEL, KEY, make_config(offline_mode=True))
    assert not server.requests


def test_a_copy_in_the_cache_serves_while_the_hub_cannot(server, make_config, monkeypatch):
    commit = server.add(MODEL, TINY)
    load(make_config())
    server.statuses = [503]
    notes: list[str] = []
    hub = Hub(make_config(), warn=notes.append)
    assert load(make_config(), hub).hub.pins == {MODEL: commit}
    assert len(notes) == 1 and commit[:7] in notes[0] and "can't be asked" in notes[0]
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    notes.clear()
    load(make_config(), Hub(make_config(), warn=notes.append))
    assert len(notes) == 1
    check_hub_name(MODEL, KEY, make_config())
    config = make_config("lab/other")
    for action in (lambda: load(config), lambda: check_hub_name("lab/other", KEY, config)):
        refused(action, "lab/other can't be fetched from the hub at http://127.0.0.1:1", "offline_mode", "a folder on")


# -- who may have it -------------------------------------------------------------------------------------------------


def attempts(make_config, name: str = MODEL, token: str = ""):
    """Asking first, and loading at once."""
    config = make_config(name, token)
    return (lambda: check_hub_name(name, KEY, config)), (lambda: load(config))


def test_a_gated_repository(server, make_config):
    server.add(MODEL, TINY, gated=True)
    words = (f"{MODEL} is gated", f"https://huggingface.co/{MODEL}", "licence", "secrets.huggingface_token", "HF_TOKEN")
    for token in ("", STRANGERS_TOKEN):
        for action in attempts(make_config, token=token):
            assert token not in str(refused(action, *words)) or not token
    for action in attempts(make_config, token=f" {GOOD_TOKEN}\n"):
        action()
    assert not any(request.token for request in server.requests if request.of_storage), "tokens stay at the hub"


def test_tokens_from_the_librarys_own_places(server, make_config, monkeypatch, tmp_path):
    server.add(MODEL, TINY, gated=True)
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    check_hub_name(MODEL, KEY, make_config())
    refused(lambda: check_hub_name(MODEL, KEY, make_config(token=STRANGERS_TOKEN)), "is gated")
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    refused(lambda: check_hub_name(MODEL, KEY, make_config()), "refuses the Hugging Face token of HF_TOKEN")
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(GOOD_TOKEN)
    check_hub_name(MODEL, KEY, make_config())


def test_a_private_and_a_missing_repository(server, make_config):
    server.add(MODEL, TINY, private=True)
    for name in (MODEL, "nobody/nothing"):
        for token in ("", STRANGERS_TOKEN):
            for action in attempts(make_config, name, token):
                refused(action, f"the hub has no repository {name}, or it is private", "secrets.huggingface_token")
    for action in attempts(make_config, token=GOOD_TOKEN):
        action()
    file = "data/sdxl/model.safetensors"
    refused(lambda: load(make_config(file)), "no repository data/sdxl", f"nor is there a file {file} here")


def test_a_wrong_token(server, make_config):
    server.add(MODEL, TINY)
    for action in attempts(make_config, token="hf_wrong"):
        assert "hf_wrong" not in str(refused(action, "the hub refuses your Hugging Face token", "settings/tokens"))


def test_no_such_revision_and_no_such_file(server, make_config):
    server.add(MODEL, {"model.safetensors": b"x"})
    for action in attempts(make_config, f"{MODEL}@v9"):
        refused(action, f"{MODEL} has no revision v9", f"https://huggingface.co/{MODEL}/tree/main")
    for action in attempts(make_config, f"{MODEL}/modle.safetensors"):
        refused(action, f"{MODEL} has no file modle.safetensors; did you mean model.safetensors?")


@pytest.mark.parametrize(
    ("status", "words"),
    [(500, "the error 500"), (503, "Try again"), (429, "too many requests"), (403, "may not read"), (418, "418")],
)
def test_answers_of_a_hub_that_is_not_well(server, make_config, status, words):
    server.add(MODEL, TINY)
    for action in attempts(make_config):
        server.statuses = [status] * 9
        refused(action, words, MODEL)


def test_a_passing_fault_is_waited_for(server, make_snapshot):
    server.add(MODEL, {"w.safetensors": WEIGHTS})
    server.statuses = [503, 429]
    snapshot = make_snapshot()
    server.statuses = [500, 502]
    assert snapshot.fetch_file("w.safetensors").read_bytes() == WEIGHTS


def test_what_is_no_hub_at_all(server, make_config, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", server.storage)
    for action in attempts(make_config):
        refused(action, "the error 404")
    monkeypatch.setattr("modules.model.hub_requests._get", lambda *args: type("Page", (), {"json": lambda self: []})())
    for action in attempts(make_config):
        refused(action, "what answers there is no hub")


def test_a_full_disk(server, make_snapshot, monkeypatch, cache):
    server.add(MODEL, {"w.safetensors": WEIGHTS})
    disk = shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=200_000))
        refused(lambda: make_snapshot().fetch_file("w.safetensors"), "Make room", "huggingface_cache_dir")
        assert not server.fetched()
    monkeypatch.setattr(hub_transfer, "_receive", lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    refused(lambda: make_snapshot().fetch_file("w.safetensors"), "the disk is full", str(cache))
