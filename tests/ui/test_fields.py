"""Every option has a control in the window, and what is entered there is what the JSON has."""

import json
import math
from typing import Any

from modules.trainer.optimizers import NO_OPTIMIZERS
from modules.util.config.field_type import option_of
from modules.util.config.load import train_config_from_dict
from modules.util.config.TrainConfig import TrainConfig
from modules.viewModel.form_tabs import OPTIMIZER, TAB_GROUPS, sections_of
from modules.viewModel.TrainForm import TrainForm
from modules.viewModel.TrainHints import TrainHints

import pytest

MUON = "optimizer.muon_adam_config."
# of the family that has a component, for components that the first one lacks
FAMILY_OF_COMPONENT = {
    "transformer": "FLUX_2", "text_encoder_2": "HI_DREAM_FULL", "text_encoder_3": "HI_DREAM_FULL",
    "text_encoder_4": "HI_DREAM_FULL", "prior": "STABLE_CASCADE_1", "effnet_encoder": "STABLE_CASCADE_1",
    "decoder": "STABLE_CASCADE_1", "decoder_text_encoder": "STABLE_CASCADE_1", "decoder_vqgan": "STABLE_CASCADE_1",
    "text_conditioner": "ANIMA",
    "unconditional_transformer": "IDEOGRAM_4",
}  # fmt: skip
JSON_TEXTS = {
    "concepts": '[{"path": "a folder"}]',
    "samples": '[{"prompt": "a word"}]',
    "scheduler_params": '[{"key": "a", "value": 1}]',
    "additional_embeddings": '[{"placeholder": "<new>"}]',
    "secrets.cloud": '{"key": "value"}',
    "optimizer_defaults": '{"SGD": {"optimizer": "SGD", "momentum": 0.5}}',
}


def new_text(form: TrainForm, path: str, now: str) -> str:
    """A text that the option accepts, for another value than the one it shows."""
    kind, declared = form.fields[path].kind, form.fields[path].declared
    if path in JSON_TEXTS:
        return JSON_TEXTS[path]
    if kind.kind is bool:
        return "false" if now == "true" else "true"
    if kind.is_enum:
        hints = TrainHints(form)
        return next(value for value in kind.values if value != now and not hints.why_not(path, value))
    if kind.kind in (int, float):
        low = max(bound for bound in (declared.ge, declared.gt, -math.inf) if bound is not None)
        high = min(bound for bound in (declared.le, declared.lt, math.inf) if bound is not None)
        tries = (3, 4, low + 1) if kind.kind is int else (0.625, -0.5, low + 0.5)
        return str(next(value for value in tries if low < value < high and str(value) != now))
    return "640" if path == "resolution" else "a text"


def with_value(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The JSON with one value changed."""
    data = json.loads(json.dumps(data))
    *outer, last = path.split(".")
    inner = data
    for key in outer:
        inner[key] = inner[key] or TrainConfig().to_dict()["optimizer"]
        inner = inner[key]
    inner[last] = value
    return data


def value_of(form: TrainForm, path: str, text: str) -> Any:
    """What the JSON should hold, without asking the code that parses texts."""
    kind = form.fields[path].kind
    if kind.kind is bool or kind.kind in (int, float):
        return json.loads(text)
    return text


def make_it_matter(form: TrainForm, path: str) -> None:
    """Gives other options values with which this one matters."""
    component, name = form.component_of(path), path.rpartition(".")[2]
    if component and not form.applies(path):
        form.set_value("model_type", FAMILY_OF_COMPONENT.get(component, "STABLE_DIFFUSION_15"))
        declared = option_of(TrainConfig, component)
        for sibling, values in declared.inner_visible_when.get(name, {}).items():
            form.set_value(sibling, values[0])
        if name in declared.unused:
            # a file has set it all the same: only then it is shown, to be set back
            form.set_text(path, new_text(form, path, form.text(path)))
    for sibling, values in form.fields[path].declared.visible_when.items():
        form.set_value(sibling, values[0])
        make_it_matter(form, sibling)
    if path.startswith("embedding."):
        form.set_value("training_method", "EMBEDDING")
    assert form.applies(path), form.conditions(path)


def enter(app, user, row, path: str) -> None:
    """Enters a new value in a row, and compares the whole JSON with the one that it should be."""
    form, control = app.form, row.control if row.one.path == path else row.unit
    before, text = form.config.to_dict(secrets=True), new_text(form, path, control.shown())
    user.use(control, text)
    after = form.config.to_dict(secrets=True)
    assert form.error(path) == ""
    assert control.shown() == form.text(path)
    if path in JSON_TEXTS:
        given, got = json.loads(text), after
        for key in path.split("."):
            got = got[key]
        assert json.dumps(form.value(path), default=lambda one: one.to_dict(sparse=True)) == json.dumps(given)
        assert with_value(after, path, None) == with_value(before, path, None)
    else:
        assert after == with_value(before, path, value_of(form, path, text)), path
    # whoever reads the file gets the same config
    again = TrainConfig.from_dict(json.loads(json.dumps(after)))
    assert again.to_dict(secrets=True) == after


TABS = [tab for tab in TAB_GROUPS if tab != OPTIMIZER]


@pytest.mark.parametrize("tab", TABS)
def test_every_option_of_a_tab_can_be_entered(app, user, tab):
    app.show_view("all")
    app.show_tab(tab)
    app.update()
    form, view = app.form, app.views[tab][0]
    paths = [one.path for section in sections_of(tab, form.sections) for one in section.fields]
    assert paths
    for path in paths:
        make_it_matter(form, path)
        row = next((row for row in view.rows.values() if path in row.paths and row.visible), None)
        assert row is not None, f"{path} has no control"
        enter(app, user, row, path)


def test_every_option_belongs_to_a_tab_or_to_the_optimizer():
    form = TrainForm()
    placed = [one.path for tab in TAB_GROUPS for section in sections_of(tab, form.sections) for one in section.fields]
    assert sorted(placed) == sorted(form.fields)


NEEDS = {"optimizer.snr_cond": ("optimizer.normed_momentum",)}


def test_every_option_of_every_optimizer_can_be_entered(app, user):
    app.open_optimizer()
    window, form = app.optimizer_window, app.form
    window._show_view("all")
    catalog, entered = form.catalog, set()
    for name, defaults in catalog.defaults.items():
        user.use(window.optimizer, str(name))
        assert form.config.optimizer.optimizer == name
        window.update_idletasks()
        shown = {path for path, row in window.view.rows.items() if row.visible} - {"optimizer_defaults"}
        own = {f"optimizer.{option}" for option in defaults if option != "muon_adam_config"}
        own |= {f"{MUON}{option}" for option in catalog.aux_defaults} if "muon_adam_config" in defaults else set()
        assert shown == own, name
        for path in sorted(own - entered):
            row = window.view.rows[path]
            # a switch that would be wrong by itself can't be used before what it needs is on
            needed = NEEDS.get(path, ())
            for other in needed:
                form.set_value(other, True)
            window.update_idletasks()
            enter(app, user, row, path)
            entered.add(path)
            for one in (path, *needed):
                form.reset(one)
            assert row.control.shown() == window._form.shown_text(path) or row.control.shown() == ""
    enter(app, user, window.view.rows["optimizer_defaults"], "optimizer_defaults")
    reachable = {path for path in form.fields if path.startswith("optimizer.")} - {"optimizer.optimizer"}
    # Muon's Adam has none of the others, and says so; those that no optimizer has are refused with the reason
    others = {path for path in reachable - entered if not path.startswith(MUON)}
    assert others == {f"optimizer.{option}" for option in NO_OPTIMIZERS}
    assert {f"{MUON}{option}" for option in catalog.aux_defaults} <= entered
    train_config_from_dict(form.config.to_dict(), warn=pytest.fail)


def test_the_unit_of_an_interval_stands_beside_it(app, user):
    app.show_tab("backup")
    row = app.views["backup"][0].rows["backup_after"]
    assert row.unit.shown() == "MINUTE" and "backup_after_unit" not in app.views["backup"][0].rows
    user.use(row.unit, "EPOCH")
    assert app.form.config.backup_after_unit == "EPOCH" and row.unit.shown() == "EPOCH"
    row.reset()
    assert app.form.config.backup_after_unit == "MINUTE"


def test_what_does_not_matter_is_hidden_until_it_does(app, user):
    app.show_tab("adapter")
    rows = app.views["adapter"][0].rows
    assert rows["lora_rank"].visible and not ("oft_block_size" in rows and rows["oft_block_size"].visible)
    user.set(rows["peft_type"], "OFT_2")
    assert rows["oft_block_size"].visible and not rows["lora_rank"].visible


def test_a_component_shows_what_it_has_a_use_for(app, user):
    app.show_view("all")
    app.show_tab("model")
    app.update()
    rows = app.views["model"][0].rows

    def shown(component: str) -> set[str]:
        return {
            path.rpartition(".")[2] for path, row in rows.items() if row.visible and path.startswith(f"{component}.")
        }

    assert shown("vae") == {"model_name", "include", "weight_dtype"}
    assert {"train", "learning_rate"} <= shown("unet") and "guidance_scale" not in shown("unet")
    assert "dropout_probability" in shown("text_encoder") - shown("unet")
    app.form.set_value("training_method", "FINE_TUNE_VAE")
    assert {"train", "learning_rate", "gradient_checkpointing"} <= shown("vae")
    app.form.set_text("unet.guidance_scale", "3")
    assert "guidance_scale" in shown("unet"), "what is set can be seen"
    rows["unet.guidance_scale"].reset()
    assert "guidance_scale" not in shown("unet")
    assert app.form.needs("unet.guidance_scale") == "another component than U-Net"


def test_undo_gives_the_default_back(app, user):
    app.show_tab("training")
    app.update()
    row = app.views["training"][0].rows["learning_rate"]
    user.set(row, "0.5")
    app.update()
    assert row._undo.winfo_ismapped()
    row._undo.invoke()
    assert app.form.config.learning_rate == 3e-6 and row.control.shown() == "3e-6" and not row._undo.winfo_manager()
