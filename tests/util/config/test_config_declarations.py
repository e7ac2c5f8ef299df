"""Every option says what it is, once, and the enums hold OneTrainer's values."""

import ast
from pathlib import Path

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.document import option_comment
from modules.util.config.field_type import default_of, expected_text, field_type, option_of
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.PeftType import PeftType

import pytest
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[3]


def config_classes() -> list[type[BaseConfig]]:
    found: list[type[BaseConfig]] = []

    def visit(config_class: type[BaseConfig]) -> None:
        if config_class in found:
            return
        found.append(config_class)
        for name in config_class.model_fields:
            kind = field_type(config_class, name)
            for child in (kind.kind, kind.item):
                if isinstance(child, type) and issubclass(child, BaseModel):
                    visit(child)

    for config_class in (TrainConfig, ConceptConfig, SampleConfig):
        visit(config_class)
    return found


FIELDS = [(config_class, name) for config_class in config_classes() for name in config_class.model_fields]


@pytest.mark.parametrize(("config_class", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_option_is_fully_declared(config_class, name):
    declared = option_of(config_class, name)
    assert declared.title and declared.title[0].isupper() and not declared.title.endswith(".")
    assert declared.help.endswith((".", "…")), "help is one or more sentences"
    assert isinstance(declared.group, OptionGroup)
    assert expected_text(config_class, name)
    assert option_comment(config_class, name).startswith(declared.title)
    for conditions in (declared.visible_when, *declared.inner_visible_when.values()):
        for sibling, values in conditions.items():
            assert sibling in config_class.model_fields
            kind = field_type(config_class, sibling)
            assert values and all(isinstance(value, kind.kind) for value in values)
    inner = {*declared.unused, *declared.inner_visible_when}
    assert inner <= set(field_type(config_class, name).kind.model_fields if inner else ())
    if declared.unit.endswith("_unit"):
        assert declared.unit in config_class.model_fields
    assert set(declared.sparse) <= set(field_type(config_class, name).kind.model_fields if declared.sparse else ())


@pytest.mark.parametrize("config_class", config_classes(), ids=lambda config_class: config_class.__name__)
def test_defaults_are_valid(config_class):
    # pydantic does not validate defaults, so validate them here as values from a file
    written = config_class().to_dict(secrets=True)
    assert config_class.from_dict(written) == config_class()
    assert config_class.from_dict({}) == config_class()


def test_defaults_are_not_shared():
    first, second = TrainConfig(), TrainConfig()
    first.unet.train = False
    first.additional_embeddings.append("x")
    assert second.unet.train and second.additional_embeddings == []


def test_components_have_their_own_defaults():
    config = TrainConfig()
    assert (config.unet.stop_training_after, config.text_encoder.stop_training_after) == (0, 30)
    assert config.text_encoder.stop_training_after_unit == "EPOCH"
    assert not config.unconditional_transformer.train
    assert default_of(TrainConfig, "lora_alpha") == 1.0


def test_optimizer_options_default_to_the_rules_own():
    options = TrainConfig().optimizer.to_dict()
    assert options.pop("optimizer") == "ADAMW"
    assert set(options.values()) == {None}


def test_enum_values_that_presets_rely_on():
    assert [member.value for member in PeftType] == ["LORA", "LOHA", "OFT_2", "LOKR"]
    assert {"AdEMAMix", "AdEMAMix_8BIT", "PRODIGY_PLUS_SCHEDULE_FREE", "STIEFEL_LORA", "LORA_RITE"} <= set(Optimizer)


def test_every_enum_file_holds_one_class_of_its_name():
    for path in sorted((ROOT / "modules/util/enum").glob("*.py")):
        classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
        assert [node.name for node in classes] == [path.stem]
        assert ast.get_docstring(classes[0])


def test_room_imports_nothing_above_it():
    allowed = (
        "modules.util.config",
        "modules.util.enum",
        "pydantic",
        "pydantic_core",
        "scaled_optim.options",
    )
    for path in sorted((ROOT / "modules/util/config").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            for name in names:
                own = name.split(".")[0] in ("modules", "pydantic", "torch", "diffusers", "numpy", "transformers")
                assert not own or name.startswith(allowed), f"{path.name} imports {name}"


def test_options_that_do_not_apply():
    config = TrainConfig.from_dict({"training_method": "FINE_TUNE"})
    assert not config.applies("lora_rank")
    config.training_method = "LORA"
    assert config.applies("lora_rank") and not config.applies("oft_block_size")
    config.peft_type = PeftType.OFT_2
    assert config.applies("oft_block_size") and not config.applies("oft_scale_mode")
    config.oft_scaled = True
    assert config.applies("oft_scale_mode")


def test_state_precision_has_an_older_spelling():
    assert TrainConfig.from_dict({"optimizer": {"nnmf_factor": True}}).optimizer.resolved_state_precision == "factored"
    assert (
        TrainConfig.from_dict(
            {"optimizer": {"nnmf_factor": True, "state_precision": "fp32"}}
        ).optimizer.resolved_state_precision
        == "fp32"
    )
    assert TrainConfig().optimizer.resolved_state_precision == "auto"


def test_weight_dtype_of_a_component():
    config = TrainConfig.from_dict(
        {"weight_dtype": "BFLOAT_16", "unet": {"weight_dtype": "NONE"}, "vae": {"weight_dtype": "FLOAT_32"}}
    )
    assert (config.component_weight_dtype("unet"), config.component_weight_dtype("vae")) == ("BFLOAT_16", "FLOAT_32")
