"""What a run tells its loggers, the record in its workspace, and the loggers that need a package."""

import importlib
import json
import sys
from pathlib import Path

from modules.trainer import Trainer as trainer_module
from modules.trainer.checks import run_problems
from modules.trainer.Logger import LoggedRun, RunEnd
from modules.trainer.TrainLog import TrainLog
from modules.trainer.WandbLogger import WandbLogger
from modules.util.config.load import train_config_from_dict
from modules.viewModel.run_data import read_run

import pytest

SAMPLES = {
    "samples": [{"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 1}], "sample_after": 2,
    "sample_after_unit": "STEP", "sample_image_format": "PNG", "epochs": 1,
}  # fmt: skip
# as wandb 0.31.0 and trackio 0.43.0 document it: what they are called with goes to `calls`
PACKAGES = {
    "wandb": """
calls = []
class Settings:
    def __init__(self, *, console, save_code, disable_git, init_timeout, finish_timeout, api_key=None): pass
class Image:
    def __init__(self, data_or_path, mode=None, caption=None): self.path, self.caption = data_or_path, caption
class Run:
    def __init__(self): self.summary = {}
    def define_metric(self, name, step_metric=None): calls.append(("define", name, step_metric))
    def log(self, data, step=None, commit=None): calls.append(("log", data, step))
    def finish(self, exit_code=None): calls.append(("finish", exit_code, self.summary))
def login(key=None, *, prompt=True, verify=True): return False
def init(*, project, dir, id, name, config, mode, resume, allow_val_change, settings):
    calls.append(("init", {"project": project, "dir": dir, "id": id, "name": name, "config": config, "mode": mode,
                           "resume": resume}))
    return Run()
""",
    "trackio": """
calls = []
class Image:
    def __init__(self, value, caption=None): self.path, self.caption = value, caption
class Run:
    def log(self, metrics, step=None): calls.append(("log", metrics, step))
    def finish(self): calls.append(("finish",))
def init(project, name=None, *, config=None, resume="never", embed=True, auto_log_gpu=None, auto_log_cpu=None):
    assert not any(key.startswith("_") for key in config), "the real one refuses such keys"
    calls.append(("init", {"project": project, "name": name, "config": config, "resume": resume}))
    return Run()
""",
}


class Memory:
    """A logger that remembers; fails where it is told to."""

    name = "memory"

    def __init__(self, fails: str = "") -> None:
        self.told, self._fails = [], fails

    def __getattr__(self, kind):
        def tell(*values):
            self.told.append((kind, *values))
            if kind == self._fails:
                raise ConnectionError("no network")
            return {"id": "seven"} if kind == "kept" else None

        return tell

    def of(self, kind: str) -> list:
        return [values for found, *values in self.told if found == kind]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """package(name): puts a package of that name on the path, and gives what it is called with."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(name: str) -> list:
        (tmp_path / f"{name}.py").write_text(PACKAGES[name], encoding="utf-8")
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name).calls

    yield put
    for name in PACKAGES:
        sys.modules.pop(name, None)


def record(workspace: Path) -> tuple[Path, list[dict]]:
    (folder,) = (workspace / "record").iterdir()
    return folder, [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]


def test_loggers_are_told_all_of_a_run_and_one_that_fails_ends_nothing(mini_run, monkeypatch):
    sound, broken = Memory(), Memory("scalars")
    broken.name = "broken"
    monkeypatch.setattr(trainer_module, "make_loggers", lambda config: [broken, sound])
    mini_run.train(**SAMPLES, secrets={"huggingface_token": "hf_secret"})
    ((run,),) = sound.of("begin")
    assert (run.step, run.total, run.workspace, run.kept) == (0, 4, mini_run.workspace, {})
    assert "hf_secret" not in str(run.config.to_dict())
    steps = [step for _, step in sound.of("scalars")]
    assert steps == [1, 2, 3, 4]
    losses = [values["loss"] for values in mini_run.of_kind("step")]
    assert [values["loss/train"] for values, _ in sound.of("scalars")] == losses
    assert {"gradient_norm", "learning_rate/unet", "seconds/step"} <= sound.of("scalars")[0][0].keys()
    drawn = [one for (one,) in sound.of("pictures")]
    assert [one.step for one in drawn] == [0, 2, 4] and all(one.grid.is_file() for one in drawn)
    assert drawn[0].pictures[0][0] == "a red shape" and drawn[0].pictures[0][1].is_file()
    assert sound.of("end") == [[RunEnd.FINISHED]] and sound.told[-1][0] == "end"
    assert len(broken.of("scalars")) == 1 and broken.of("end") == [[RunEnd.FINISHED]], "it may have to tidy up"
    assert [text for text in mini_run.warnings() if "no network" in text] == [
        "broken fails, and the run goes on without it: no network"
    ]


def test_a_process_that_does_not_lead_has_no_loggers_and_may_be_told_all_the_same():
    warned = []
    run = LoggedRun("name", Path(), train_config_from_dict({}), 0, 1)
    log = TrainLog([], run, {}, warned.append)
    log.scalars({"loss/validation": 1.0}, 1)
    log.pictures(None)
    assert log.kept() == {} and not warned
    log.end(RunEnd.FINISHED)


def test_the_record_holds_a_run_over_its_sessions_and_follows_pictures_that_are_set_aside(mini_run):
    mini_run.train(stop_after=3, **SAMPLES)
    mini_run.train(**SAMPLES, continue_last_backup=True)
    folder, lines = record(mini_run.workspace)
    assert [line["kind"] for line in lines if line["kind"] in ("begin", "end")] == ["begin", "end"] * 2
    assert [line["step"] for line in lines if line["kind"] == "scalars"] == [1, 2, 3, 4]
    assert [line.get("state") for line in lines if line["kind"] == "end"] == ["stopped", "finished"]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["learning_rate"] == 0.01 and "secrets" not in config
    data = read_run([folder / "events.jsonl"], mini_run.workspace)
    assert data.loss.steps == [1, 2, 3, 4] and data.loss.values == [one["loss"] for one in mini_run.of_kind("step")]
    before = {picture.path: picture.path.read_bytes() for picture in data.pictures}
    assert {picture.step for picture in data.pictures} == {0, 2, 4} and before
    assert mini_run.of_kind("record")[0]["path"] == str(folder)

    mini_run.train(**{**SAMPLES, "sample_after_unit": "NEVER"}, seed=7)
    moved = read_run([folder / "events.jsonl"], mini_run.workspace).pictures
    assert [picture.path.read_bytes() for picture in moved] == list(before.values()), (
        "they are its own, where they are now"
    )
    assert all(picture.path.parent.parent.name == "samples-1" for picture in moved)


def test_wandb_is_called_as_it_documents_and_goes_on_with_its_run(mini_run, package):
    """Our calls against the signatures that wandb 0.31.0 documents; the package itself is not in the suite."""
    calls = package("wandb")
    options = {**SAMPLES, "logger": "WANDB", "wandb_mode": "OFFLINE", "logger_project": "mine"}
    mini_run.train(stop_after=2, **options, secrets={"wandb_api_key": "key_secret"})
    mini_run.train(**options, continue_last_backup=True)
    first, second = (one[1] for one in calls if one[0] == "init")
    assert first["id"] == second["id"] and len(first["id"]) == 8 and second["resume"] == "allow"
    assert (first["project"], first["name"], first["mode"]) == ("mine", "lora", "offline")
    assert first["dir"] == str(mini_run.workspace) and first["config"]["learning_rate"] == 0.01
    assert "key_secret" not in str(calls)
    logged = [data for kind, data, *_ in calls if kind == "log"]
    assert [data["step"] for data in logged if "loss/train" in data] == [1, 2, 3, 4]
    pictures = [value for data in logged for key, value in data.items() if key.startswith("samples/0 - a red shape")]
    assert len(pictures) == 3 and {one.caption for one in pictures} == {"a red shape"}
    assert all(Path(one.path).is_file() for one in pictures)
    assert ("define", "*", "step") in calls
    assert [values for kind, *values in calls if kind == "finish"] == [
        [0, {"state": "stopped"}],
        [0, {"state": "finished"}],
    ]


def test_wandb_without_a_key_is_told_once(tmp_path, package):
    """Our calls against the signatures that wandb 0.31.0 documents; the package itself is not in the suite."""
    calls, warned = package("wandb"), []
    run = LoggedRun("name", tmp_path, train_config_from_dict({"logger": "WANDB"}), 0, 1)
    log = TrainLog([WandbLogger()], run, {}, warned.append)
    log.scalars({"loss/train": 1.0}, 1)
    log.end(RunEnd.FINISHED)
    (told,) = warned
    assert (
        told.startswith("wandb fails, and the run goes on without it: it knows no API key.") and "wandb login" in told
    )
    assert not calls


def test_trackio_is_called_as_it_documents_and_goes_on_with_its_run(mini_run, package):
    """Our calls against the signatures that trackio 0.43.0 documents; the package itself is not in the suite."""
    calls = package("trackio")
    options = {**SAMPLES, "logger": "TRACKIO", "logger_run_name": "try"}
    mini_run.train(stop_after=2, **options)
    mini_run.train(**options, continue_last_backup=True)
    first, second = (one[1] for one in calls if one[0] == "init")
    assert first["name"] == second["name"] and first["name"].startswith("try 2")
    assert (first["resume"], second["resume"]) == ("never", "allow")
    logged = [one[1:] for one in calls if one[0] == "log"]
    assert [step for data, step in logged if "loss/train" in data] == [1, 2, 3, 4]
    assert calls[-1] == ("finish",)


def test_a_package_that_is_missing_is_told_before_the_run_with_what_installs_it(mini_run, monkeypatch):
    for name, package, version in (("WANDB", "wandb", "0.31.0"), ("TRACKIO", "trackio", "0.43.0")):
        monkeypatch.setattr("modules.trainer.loggers.find_spec", lambda name: None)
        config = train_config_from_dict(mini_run.options(logger=name))
        (problem,) = run_problems(config)
        assert problem.path == "logger" and f"python -m pip install {package}=={version}" in problem.text
        (remedy,) = problem.remedies
        assert dict(remedy.values)["logger"] == "NONE"
    assert not run_problems(train_config_from_dict(mini_run.options()))
