"""The optimizer window: exactly the options of the chosen one, defaults, what can't be combined, recommendations."""

import pytest


@pytest.fixture
def window(app):
    app.form.set_text("optimizer.optimizer", "ADAMW_ADV")
    app.open_optimizer()
    app.update()
    return app.optimizer_window


def test_it_opens_from_the_training_tab(app):
    app.show_tab("training")
    (button,) = (
        child
        for card in app.views["training"][0]._cards.values()
        for child in card.winfo_children()
        if "Options of the optimizer" in str(child.cget("text") if "text" in child.keys() else "")
    )
    button.invoke()
    app.update()
    assert app.optimizer_window.winfo_exists()


def test_the_basic_view_has_fewer_options_and_none_of_others(app, window, user):
    own = {f"optimizer.{name}" for name in app.form.catalog.defaults["ADAMW_ADV"]}
    basic = {path for path, row in window.view.rows.items() if row.visible}
    window.views.buttons["all"].invoke()
    everything = {path for path, row in window.view.rows.items() if row.visible}
    assert basic < everything and everything - {"optimizer_defaults"} == own


def test_a_default_is_shown_and_comes_back(app, window, user):
    rows = window.view.rows
    assert rows["optimizer.stochastic_rounding"].control.shown() == "true"
    assert str(rows["optimizer.beta2"].control._hint.cget("text")) == "default: 0.999"
    user.set(rows["optimizer.beta2"], "0.9")
    user.set(rows["optimizer.stochastic_rounding"], "false")
    assert app.form.config.optimizer.beta2 == 0.9 and app.form.config.optimizer.stochastic_rounding is False
    rows["optimizer.stochastic_rounding"].reset()
    assert app.form.config.optimizer.stochastic_rounding is None
    assert rows["optimizer.stochastic_rounding"].control.shown() == "true"
    window._form.reset()
    assert app.form.config.optimizer.beta2 is None and rows["optimizer.beta2"].control.shown() == ""


def test_what_cannot_be_combined_is_locked_and_says_why(app, window, user):
    window.views.buttons["all"].invoke()
    rows = window.view.rows
    user.set(rows["optimizer.use_AdEMAMix"], "true")
    locked = rows["optimizer.Simplified_AdEMAMix"].control
    assert "disabled" in locked.switch.state()
    assert "takes the place of “AdEMAMix”" in str(locked._reason.cget("text")) and locked._reason.winfo_manager()
    locked.switch.invoke()
    assert app.form.config.optimizer.Simplified_AdEMAMix is None
    user.set(rows["optimizer.use_AdEMAMix"], "false")
    assert "disabled" not in locked.switch.state() and not locked._reason.winfo_manager()


def test_wrong_numbers_are_told_at_the_field(app, window, user, until):
    beta = window.view.rows["optimizer.beta1"]
    user.set(beta, "1.5")
    until(app, lambda: beta.error)
    assert "less than 1" in beta.error
    until(app, lambda: "disabled" in app.problems.start.state())
    beta.reset()
    # what only the rule itself knows
    window.views.buttons["all"].invoke()
    user.set(window.view.rows["optimizer.kourkoutas_beta"], "true")
    user.set(window.view.rows["optimizer.beta2"], "0.5")
    until(app, lambda: "less than “Beta 2”" in window.view.rows["optimizer.beta2_min"].error)


def test_a_recommendation_is_one_click(app, window, until):
    assert "disabled" in window.recommended["Centered decay: keep what the model knew"].state()
    window.recommended["Scaled, α = rank"].invoke()
    config = app.form.config
    assert config.optimizer.scaled_optm and config.learning_rate == 0.017 and config.lora_alpha == config.lora_rank
    assert window.view.rows["optimizer.scaled_optm"].control.shown() == "true"
    window.recommended["Fisher 1e-6"].invoke()
    assert config.optimizer.fisher_wd and config.optimizer.weight_decay == 1e-6
    app.form.set_value("lora_decompose", True)
    assert "disabled" not in window.recommended["Centered decay: keep what the model knew"].state()


def test_options_of_each_optimizer_are_remembered(app, window, user):
    user.set(window.view.rows["optimizer.beta1"], "0.5")
    user.use(window.optimizer, "LION_ADV")
    assert "optimizer.fisher_wd" not in window.view.rows
    assert str(window.view.rows["optimizer.beta2"].control._hint.cget("text")) == "default: 0.99"
    user.use(window.optimizer, "ADAMW_ADV")
    assert window.view.rows["optimizer.beta1"].control.shown() == "0.5"


def test_every_option_has_help(app, window):
    window.views.buttons["all"].invoke()
    for path, row in window.view.rows.items():
        assert path in row._help() and app.form.fields[path].declared.help.split()[0] in row._help()
