"""One list of checks: the command line, the window and a run say the same of a config, before any model is opened."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules.model.BaseModel import BaseModel
from modules.trainer import Trainer as trainer_module
from modules.trainer.checks import run_problems
from modules.trainer.Trainer import Trainer
from modules.util.config.load import train_config_from_dict
from modules.util.UserError import UserError
from modules.viewModel.OptimizerCatalog import OptimizerCatalog
from modules.viewModel.TrainForm import TrainForm
from tests.load_script import load_script

import pytest

FINE = {"training_method": "FINE_TUNE", "output_model_format": "SAFETENSORS", "unet": {"gradient_checkpointing": False}}
SMALL_COMPONENTS = {"unet": {"gradient_checkpointing": False}, "text_encoder": {"train": False}}
EMBEDDING = {
    "training_method": "EMBEDDING", "output_model_format": "SAFETENSORS",
    "embedding": {"placeholder": "red", "initial_embedding_text": "blue", "train": True},
}  # fmt: skip

RIGHT: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "DoRA": {"lora_decompose": True},
    "OFT": {"peft_type": "OFT_2", "oft_block_size": 4},
    "LoHa": {"peft_type": "LOHA"},
    "LoKr": {"peft_type": "LOKR"},
    "other format": {"output_model_format": "COMFY_LORA"},
    "usual format": {"output_model_format": "SAFETENSORS"},
    "fine-tune": FINE,
    "fine-tune into a folder": {**FINE, "output_model_format": "DIFFUSERS", "output_model_destination": "{out}/model"},
    "embedding": EMBEDDING,
    "scaled": {"optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True}},
    "Stiefel": {"optimizer": {"optimizer": "STIEFEL_LORA"}, "lora_init": "ORTHONORMAL"},
    "RITE": {"optimizer": {"optimizer": "LORA_RITE"}},
    "Prodigy": {"optimizer": {"optimizer": "PRODIGY"}, "learning_rate": 1.0},
    "fused": {"optimizer": {"optimizer": "ADAMW_ADV", "fused_back_pass": True}},
    "half precision": {"train_dtype": "BFLOAT_16", "unet": {**SMALL_COMPONENTS["unet"], "weight_dtype": "BFLOAT_16"}},
    "velocity": {"force_v_prediction": True},
    "a new workspace": {"workspace_dir": "{out}/not/there/yet"},
    "a file that may be replaced": {"output_model_destination": "{file}"},
    "a hub name with a dot": {"base_model_name": "some-lab/tiny-model-1.0"},
}
# what is wrong -> (changes, the option that is to blame, words of the message)
WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "format of adapters for a fine-tune": (
        {**FINE, "output_model_format": "KOHYA_LORA"}, "output_model_format", "fully"),
    "format of models for an adapter": ({"output_model_format": "DIFFUSERS"}, "output_model_format", "adapter"),
    "format that can't hold the kind": (
        {"output_model_format": "DIFFUSERS_LORA", "lora_decompose": True}, "output_model_format", "cannot hold"),
    "no such folder": ({"base_model_name": "{out}/nowhere"}, "base_model_name", "does not exist"),
    "a folder that is no model": ({"base_model_name": "{out}"}, "base_model_name", "model_index.json"),
    "no such component": ({"vae": {"model_name": "{out}/vae"}}, "vae.model_name", "does not exist"),
    "no such file": ({"base_model_name": "models/nothing.safetensors"}, "base_model_name", "does not exist"),
    "a family without code": ({"model_type": "WUERSTCHEN_2"}, "model_type", "not supported"),
    "a method without code": ({"training_method": "FINE_TUNE_VAE"}, "training_method", "not supported"),
    "an option that no optimizer has": (
        {"optimizer": {"optimizer": "ADAMW_8BIT", "percentile_clipping": 50}},
        "optimizer.percentile_clipping",
        "given it up",
    ),
    "an option of another optimizer": (
        {"optimizer": {"optimizer": "ADAMW", "fisher_wd": True}}, "optimizer.fisher_wd", "no such option"),
    "two options that exclude each other": (
        {"optimizer": {"optimizer": "ADAMW_ADV", "use_AdEMAMix": True, "Simplified_AdEMAMix": True}},
        "optimizer.Simplified_AdEMAMix", "takes the place"),
    "pairs for a fine-tune": ({**FINE, "optimizer": {"optimizer": "LORA_RITE"}}, "optimizer.optimizer", "has none"),
    "Stiefel without orthonormal start": ({"optimizer": {"optimizer": "STIEFEL_LORA"}}, "lora_init", "ORTHONORMAL"),
    "two rates for one": (
        {"optimizer": {"optimizer": "PRODIGY"}, "learning_rate": 1.0,
         "text_encoder": {"train": True, "learning_rate": 0.5, "gradient_checkpointing": False}},
        "learning_rate", "one learning rate"),
    "fused and accumulated": (
        {"optimizer": {"optimizer": "ADAMW_ADV", "fused_back_pass": True}, "gradient_accumulation_steps": 2},
        "optimizer.fused_back_pass", "can't be added up"),
    "quantized weights that are trained": (
        {**FINE, "unet": {"weight_dtype": "INT_8"}}, "unet.weight_dtype", "frozen"),
    "a format of weights without code": (
        {"unet": {"weight_dtype": "GGUF", "gradient_checkpointing": False}}, "unet.weight_dtype", "not supported"),
    "offloading what is trained": (
        {**FINE, "unet": {"offload_fraction": 0.5}}, "unet.offload_fraction", "only frozen layers"),
    "shift by size where there is none": (
        {"dynamic_timestep_shifting": True}, "dynamic_timestep_shifting", "no shift"),
    "nothing is trained": ({"unet": {"train": False}}, "unet.train", "nothing is trained"),
    "no concept": ({"concepts": []}, "concepts", "nothing to train on"),
    "a concept without a folder": ({"concepts": [{"path": "{out}/nowhere"}]}, "concepts", "does not exist"),
    "no list of concepts": (
        {"concepts": None, "concept_file_name": "{out}/c.json"}, "concept_file_name", "no such file"),
    "nothing to validate with": ({"validation": True}, "validation", "VALIDATION"),
    "an output that is a folder": ({"output_model_destination": "{out}"}, "output_model_destination", "is a folder"),
    "a workspace that is a file": ({"workspace_dir": "{file}"}, "workspace_dir", "is a file"),
    "a cache below a file": ({"cache_dir": "{file}/cache"}, "cache_dir", "is no folder"),
    "an output that must not be replaced": (
        {"output_model_destination": "{file}", "prevent_overwrites": True}, "output_model_destination", "exists"),
    "an empty output": ({"output_model_destination": " "}, "output_model_destination", "is empty"),
    "a device that is not here": ({"train_device": "cuda:77"}, "train_device", "not a usable device"),
    "a schedule without code": ({"learning_rate_scheduler": "ADAFACTOR"}, "learning_rate_scheduler", "not supported"),
    "words for an embedding": ({**EMBEDDING, "embedding": {"placeholder": " "}}, "embedding", "a word for each"),
    "an embedding into an adapter's file": (
        {**EMBEDDING, "output_model_format": "KOHYA_LORA"}, "output_model_format", "has no embeddings"),
    "an adapter to continue that is not there": (
        {"lora_model_name": "{out}/a.safetensors"}, "lora_model_name", "a.safetensors"),
    "an adapter for a fine-tune": ({**FINE, "lora_model_name": "{file}"}, "lora_model_name", "does not train"),
    "an option without code": ({"debug_mode": True}, "debug_mode", "not written yet"),
}  # fmt: skip


class Reached(Exception):
    """The run would begin to load weights now."""


@pytest.fixture(scope="module")
def validate() -> Callable[[list[str]], int]:
    """The command line, in this process."""
    script = load_script("train")

    def run(arguments: list[str]) -> int:
        before = sys.argv
        sys.argv = ["train.py", *arguments]
        try:
            return script.main()
        finally:
            sys.argv = before

    return run


@pytest.fixture(scope="module")
def catalog() -> OptimizerCatalog:
    return OptimizerCatalog.load()


@pytest.fixture
def place(mini_run, monkeypatch):
    """place(changes) -> changes with the paths of this test, and the run; `run.opened` tells which models it opened."""
    monkeypatch.chdir(mini_run.root)
    (mini_run.root / "a file.safetensors").write_bytes(b"x")
    mini_run.opened = []
    load = BaseModel.load.__func__

    def note(cls, config, device, *more, **options):
        mini_run.opened.append(config.base_model_name)
        if "/" in config.base_model_name and not Path(config.base_model_name).exists():
            # the hub's own tests load from it
            raise Reached
        return load(cls, config, device, *more, **options)

    def reached(*arguments, **options):
        raise Reached

    monkeypatch.setattr(BaseModel, "load", classmethod(note))
    monkeypatch.setattr(trainer_module, "prepare_data", reached)
    # the hub's own tests ask a server
    monkeypatch.setattr("modules.trainer.checks.check_hub_name", lambda name, key, config: None)

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: put(item) for key, item in value.items()}
        if isinstance(value, list):
            return [put(item) for item in value]
        if isinstance(value, str):
            file = str(mini_run.root / "a file.safetensors")
            return value.replace("{out}", str(mini_run.root)).replace("{file}", file)
        return value

    return lambda changes: (put(changes), mini_run)


def form_of(options: dict[str, Any], catalog: OptimizerCatalog) -> TrainForm:
    """The window's form, with all that it loads."""
    form = TrainForm(train_config_from_dict(options, warn=lambda _: None))
    form.catalog, form.checks = catalog, form.load_checks()
    return form


def test_there_are_forty_configs_and_half_of_them_are_wrong():
    assert len(RIGHT) == 20 and len(WRONG) >= 20


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_right_everywhere(name, place, validate, catalog, capsys):
    changes, run = place(RIGHT[name])
    options = run.options(**changes)
    assert run_problems(train_config_from_dict(options)) == []
    assert form_of(options, catalog).problems() == []
    with pytest.raises(Reached):
        run.trainer(**changes).run()
    if name == "a hub name with a dot":
        return
    assert validate(["--config-path", str(run.write(**changes)), "--validate"]) == 0, capsys.readouterr().err
    assert "is valid" in capsys.readouterr().out


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_alike_everywhere_before_a_model_is_opened(name, place, validate, catalog, capsys):
    changes, path, words = WRONG[name]
    changes, run = place(changes)
    options = run.options(**changes)
    (problem,) = run_problems(train_config_from_dict(options))
    assert problem.path == path and words in problem.text
    assert form_of(options, catalog).problems() == [problem]
    with pytest.raises(UserError) as caught:
        run.trainer(**changes).run()
    assert str(caught.value) == f"{problem}."
    assert validate(["--config-path", str(run.write(**changes)), "--validate"]) == 1
    assert f"error: {problem}." in capsys.readouterr().err
    assert not run.opened and not Path(options["workspace_dir"]).is_dir() or name == "a workspace that is a file"


@pytest.mark.parametrize("name", WRONG)
def test_each_remedy_mends_what_it_is_for(name, place, catalog):
    changes, path, _ = WRONG[name]
    changes, run = place(changes)
    options = run.options(**changes)
    (problem,) = run_problems(train_config_from_dict(options))
    for remedy in problem.remedies:
        form = form_of(options, catalog)
        assert form.remedy_text(problem, remedy).startswith(("Set to ", "Set “"))
        form.apply_remedy(remedy)
        assert problem.path not in [left.path for left in form.problems()], remedy


def test_several_problems_are_told_in_one_list(place):
    changes, run = place({"debug_mode": True, "output_model_format": "DIFFUSERS", "vae": {"model_name": "{out}/vae"}})
    with pytest.raises(UserError, match="3 problems") as caught:
        run.trainer(**changes).run()
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "debug_mode", "vae.model_name", "output_model_format",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_filter": "attentions, not_a_layer"}, "layer_filter: 'not_a_layer' is in no layer name of unet"),
        ({**FINE, "layer_filter": "not_a_layer"}, "layer_filter: 'not_a_layer' is in no layer name of unet"),
        ({"text_encoder_layer_skip": 9}, "text_encoder_layer_skip: found 9"),
        (
            {"unet": {"weight_dtype": "INT_8"}, "quantization": {"layer_filter": "not_a_layer"}},
            "quantization.layer_filter: 'not_a_layer' is in no layer name of unet",
        ),
    ],
)
def test_what_layers_tell_is_told_before_weights_are_read(changes, words, place, validate, monkeypatch, capsys):
    changes, run = place(changes)
    monkeypatch.setattr("modules.model.ModelSource.FolderSource.module", lambda *a: pytest.fail("weights are read"))
    with pytest.raises(UserError, match=words):
        run.trainer(**changes).run()
    assert validate(["--config-path", str(run.write(**changes)), "--validate"]) == 1
    assert words in capsys.readouterr().err


def test_checking_makes_nothing(place):
    """A path can be half typed in the window."""
    places = {"workspace_dir": "{out}/a/b", "cache_dir": "{out}/c", "output_model_destination": "{out}/d/e"}
    changes, run = place(places)
    before = sorted(run.root.rglob("*"))
    assert run_problems(train_config_from_dict(run.options(**changes))) == []
    assert sorted(run.root.rglob("*")) == before


def test_a_trainer_is_not_made_ready_by_its_checks(place):
    changes, run = place({"debug_mode": True})
    trainer = run.trainer(**changes)
    assert isinstance(trainer, Trainer)
    with pytest.raises(UserError, match="debug_mode"):
        trainer.run()
    assert not hasattr(trainer, "model")
