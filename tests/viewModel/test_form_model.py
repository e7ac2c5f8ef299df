"""A form holds what a person typed, right or wrong, and its config is valid at any time."""

import json

from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelType import ModelType
from modules.util.enum.OptionGroup import OptionGroup
from modules.viewModel.field_text import empty_meaning, in_form_words, parse_text, text_of
from modules.viewModel.form_tabs import GENERAL, TAB_GROUPS, sections_of, tab_of
from modules.viewModel.FormModel import FormModel
from modules.viewModel.TrainForm import TrainForm
from modules.viewModel.TrainHints import TrainHints

import pytest
from pydantic import BaseModel


def leaves(config: BaseModel, prefix: str = "") -> set[str]:
    """Paths of all values of a config, found without the code under test."""
    found = set()
    for name in type(config).model_fields:
        value = getattr(config, name)
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}"}
    return found


@pytest.mark.parametrize("config_class", [TrainConfig, ConceptConfig, SampleConfig])
def test_every_option_is_a_field_and_stands_in_one_section(config_class):
    form = FormModel(config_class())
    # an object that may be null is null here; its own options are fields instead of it
    assert leaves(config_class()) - {"optimizer.muon_adam_config"} <= set(form.fields)
    placed = [one.path for section in form.sections for one in section.fields]
    assert sorted(placed) == sorted(form.fields)


def test_options_of_an_object_that_is_null_are_fields():
    form = TrainForm()
    inner = {path for path in form.fields if path.startswith("optimizer.muon_adam_config.")}
    own = {name for name in type(form.config.optimizer).model_fields if name not in ("optimizer", "muon_adam_config")}
    assert inner == {f"optimizer.muon_adam_config.{name}" for name in own}


def test_every_group_has_a_tab():
    form, own = TrainForm(), {group for groups in TAB_GROUPS.values() for group in groups}
    used = {section.group for section in form.sections}
    assert used <= own
    assert {
        one.path for tab in TAB_GROUPS for section in sections_of(tab, form.sections) for one in section.fields
    } == set(form.fields)
    # a group that nobody has placed is still seen
    assert tab_of(OptionGroup.CONCEPT) == GENERAL


def test_what_goes_with_a_component_stands_with_it():
    form = TrainForm()
    assert form.component_of("text_encoder_2_layer_skip") == "text_encoder_2"
    assert form.component_of("text_encoder_layer_skip") == "text_encoder"
    assert form.component_of("text_encoder_2.train") == "text_encoder_2"
    assert form.component_of("learning_rate") == ""


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("learning_rate", "3e-4", 3e-4),
        ("learning_rate", " 1 ", 1.0),
        ("lokr_decompose_factor", "\N{MINUS SIGN}1", -1),
        ("batch_size", "4", 4),
        ("clip_grad_norm", "", None),
        ("latent_caching", "false", False),
        ("learning_rate_scheduler", "COSINE", "COSINE"),
        ("optimizer.beta1", "0.5", 0.5),
        ("optimizer.muon_adam_config.beta1", "0.5", 0.5),
        ("secrets.cloud", '{"a": 1}', {"a": 1}),
        ("resolution", "512x768", "512x768"),
    ],
)
def test_a_text_becomes_a_value(path, text, value):
    form = TrainForm()
    assert form.set_text(path, text) == ""
    assert form.value(path) == value
    kind = form.fields[path].kind
    assert parse_text(kind, text_of(form.value(path))) == form.value(path)


@pytest.mark.parametrize("value", [1e-4, 3e-6, 200.0, 0.1, 1e22, 0.30000000000000004, float("inf"), 5e-324])
def test_a_number_is_short_and_reads_back_as_itself(value):
    kind = TrainForm().fields["optimizer.growth_rate"].kind
    text = text_of(value)
    assert float(parse_text(kind, text)) == value
    assert len(text) <= len(repr(value))


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("learning_rate", "-1", "at least 0"),
        ("batch_size", "many", "a whole number of at least 1"),
        ("batch_size", "1.5", "a whole number"),
        ("batch_size", "", "a whole number"),
        ("min_noising_strength", "2", "from 0 to 1"),
        ("learning_rate", "nan", "a number"),
        ("resolution", "big", "pixels"),
        ("secrets.cloud", "{", "JSON"),
        ("scheduler_params", "3", "a list"),
    ],
)
def test_a_wrong_text_stays_with_its_reason_and_the_config_keeps_its_value(path, text, words):
    form = TrainForm()
    form.set_value("learning_rate_scheduler", "CUSTOM")
    before = form.value(path)
    assert words in form.set_text(path, text)
    assert form.text(path) == text and words in form.error(path)
    assert form.value(path) == before
    assert [problem.path for problem in FormModel.problems(form)] == [path]
    form.set_text(path, text_of(before) if before is not None else "")
    assert form.error(path) == "" and not FormModel.problems(form)


def test_a_wrong_text_of_an_option_that_no_longer_matters_stops_nothing():
    form = TrainForm()
    form.set_value("masked_training", True)
    form.set_text("unmasked_weight", "9")
    assert [problem.path for problem in FormModel.problems(form)] == ["unmasked_weight"]
    form.set_value("masked_training", False)
    assert not FormModel.problems(form)


def test_default_mark_and_undo():
    form = TrainForm()
    assert not any(form.is_modified(path) for path in form.fields)
    for path, text in (("learning_rate", "1"), ("unet.train", "false"), ("optimizer.muon_adam_config.beta1", "0.5")):
        form.set_text(path, text)
        assert form.is_modified(path)
        form.reset(path)
        assert not form.is_modified(path)
    # a component has its own defaults
    assert form.default("text_encoder.stop_training_after") == 30 and form.default("unet.stop_training_after") == 0
    assert form.config == TrainConfig()
    form.set_text("batch_size", "x")
    assert form.is_modified("batch_size")
    form.reset("batch_size")
    assert form.error("batch_size") == "" and form.text("batch_size") == "1"


def test_listeners_hear_what_changed_until_they_stop():
    form, heard = TrainForm(), []
    stop = form.listen(heard.append)
    form.set_text("batch_size", "2")
    form.set_text("batch_size", "x")
    form.replace(TrainConfig())
    stop()
    form.set_text("batch_size", "3")
    assert heard == [{"batch_size"}, {"batch_size"}, {""}]


def test_conditions_are_told_in_words():
    form = TrainForm()
    form.config.training_method = "LORA"
    form.config.peft_type = "LORA"
    assert form.conditions("oft_block_size") == ["“Adapter” OFT_2"]
    assert form.conditions("lora_rank") == []
    assert form.conditions("embedding.placeholder") == ["“Training method” EMBEDDING"]
    form.config.model_type = ModelType.STABLE_DIFFUSION_15
    assert form.applies("unet.train") and not form.applies("transformer.train")
    assert form.needs("transformer.train") == "a “Model type” that has the component Transformer"
    # of a family that can't be trained here the components are known, too
    form.config.model_type = ModelType.HUNYUAN_VIDEO
    assert form.applies("transformer.train") and not form.applies("unet.train")


def test_problems_between_options_are_shown_at_one():
    form = TrainForm()
    form.set_text("min_noising_strength", "0.5")
    form.set_text("max_noising_strength", "0.5")
    assert form.complaint("min_noising_strength") == ""
    form.check()
    assert "less than" in form.complaint("min_noising_strength")
    form.set_text("max_noising_strength", "1")
    form.check()
    assert form.complaint("min_noising_strength") == ""


def test_what_a_run_needs_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    form = TrainForm()
    form.set_text("concept_file_name", "none.json")
    form.set_text("base_model_name", " ")
    form.set_value("model_type", ModelType.HUNYUAN_VIDEO)
    problems = {problem.path: problem.text for problem in form.problems()}
    assert "no such file" in problems["concept_file_name"]
    assert "is empty" in problems["base_model_name"]
    assert "cannot be trained" in problems["model_type"]
    (tmp_path / "images").mkdir()
    concepts = [{"path": "images"}, {"path": "elsewhere"}, {"path": "nowhere", "enabled": False}]
    (tmp_path / "none.json").write_text(json.dumps(concepts), encoding="utf-8")
    assert [problem.text for problem in form.problems() if "concept" in problem.path] == [
        "concept 2 \"elsewhere\": the folder 'elsewhere' does not exist; correct its path, or disable the concept"
    ]
    form.set_text("concepts", "[]")
    assert "nothing to train on" in next(problem.text for problem in form.problems() if problem.path == "concepts")


def test_tokens_stay_whatever_is_opened():
    form = TrainForm()
    form.set_text("secrets.huggingface_token", "hf")
    form.replace(TrainConfig())
    assert form.config.secrets.huggingface_token == "hf"
    form.replace(TrainConfig.from_dict({"secrets": {"huggingface_token": "other"}}))
    assert form.config.secrets.huggingface_token == "hf", "a file's are nobody's"


def test_help_speaks_of_forms_not_of_json():
    form = TrainForm()
    hints = TrainHints(form)
    assert hints.placeholder("unet.learning_rate") == "the run's “Learning rate”"
    assert hints.placeholder("lora_model_name") == "a fresh adapter"
    assert "null" not in hints.help("unet.learning_rate").split("Expected")[0]
    assert "at least 0" in hints.help("unet.learning_rate")
    form.config.model_type = ModelType.STABLE_DIFFUSION_15
    assert "Matters only with" in hints.help("transformer.train")
    assert empty_meaning("Freezes it. null, or the unit NEVER: trained to the end.") == "trained to the end"
    assert in_form_words("A number. null: none. Used if `samples` is null.") == (
        "A number. Empty: none. Used if samples is empty."
    )


def test_choices_name_what_cannot_be_chosen():
    hints = TrainHints(TrainForm())
    choices = hints.choices("model_type")
    assert [choice.text for choice in choices if not choice.why_not][0] == "STABLE_DIFFUSION_15"
    assert choices[-1].why_not and {choice.text for choice in choices} == {str(kind) for kind in ModelType}
    assert [choice.text for choice in hints.choices("train_device")] == ["auto", "cuda", "mps", "cpu"]
    assert hints.choices("optimizer.state_precision")[0].text == ""
    assert hints.choices("batch_size") == []


@pytest.mark.parametrize("text", ["0.05", "1.50", "1.0", "3e-06", "1e-10", "2.0e-4", "-0", "100.25"])
def test_what_is_typed_key_by_key_stays_as_it_is(text):
    form = TrainForm()
    for count in range(1, len(text) + 1):
        form.set_text("learning_rate", text[:count])
        assert form.text("learning_rate") == text[:count]
    assert form.config.learning_rate == abs(float(text)) and not form.has_refused_texts
    # another value from elsewhere is shown as usual
    form.set_value("learning_rate", 0.5)
    assert form.text("learning_rate") == "0.5"
    form.set_text("learning_rate", "0.50")
    form.reset("learning_rate")
    assert form.text("learning_rate") == "3e-6"


def test_errors_speak_of_empty_fields():
    form = TrainForm()
    assert form.set_text("unet.learning_rate", "abc").endswith("or empty") and form.has_refused_texts
    error = form.set_text("samples", '[{"prompt" "a"}]')
    assert error.startswith("is not valid JSON: line 1, column 12") and "JSON: is" not in error
    form.replace(TrainConfig())
    assert not form.has_refused_texts and form.text("unet.learning_rate") == ""
