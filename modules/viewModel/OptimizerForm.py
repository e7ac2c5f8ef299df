from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.field_type import field_type
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainOptimizerConfig import OFF, TrainOptimizerConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.texts import later, tr
from modules.viewModel.field_text import in_words, parse_text, text_of
from modules.viewModel.FormField import FormField, FormSection
from modules.viewModel.OptimizerCatalog import AUX, OptimizerCatalog
from modules.viewModel.option_titles import BETWEEN
from modules.viewModel.recommended import SCALED_OPTIMIZER, Recommendation
from modules.viewModel.TrainForm import OPTIMIZER, TrainForm
from modules.viewModel.TrainHints import TrainHints

PREFIX = "optimizer."
MEMORY = "memory"


class OptimizerForm(TrainHints):
    """The options that the chosen optimizer has, with its own defaults, and what can't be combined.

    Args:
        form: of the run.
        catalog: what the optimizers take.
    """

    def __init__(self, form: TrainForm, catalog: OptimizerCatalog) -> None:
        super().__init__(form)
        self.form: TrainForm = form
        self.catalog = catalog

    @property
    def chosen(self) -> Optimizer:
        """The optimizer of the config."""
        return self.form.config.optimizer.optimizer

    def choose(self, optimizer: Optimizer) -> None:
        """Takes another optimizer. The options of the old one are remembered, those of the new one come back."""
        self.form.choose_optimizer(optimizer)

    def sections(self) -> list[FormSection]:
        """Exactly the options of the chosen optimizer by heading, and any other that is set, as it must be reset."""
        own = self.catalog.defaults[self.chosen]
        found = []
        for section in self.form.sections:
            if section.key == OptionGroup.OPTIMIZER.value:
                # what is remembered of other optimizers is no option of this one, and comes last
                title = later("Remembered")
                found.append(FormSection(MEMORY, title, section.help, section.group, True, section.fields))
            if section.key != "optimizer":
                continue
            for one in section.fields:
                if one.name == "optimizer" and one.parent == "optimizer":
                    continue
                if one.parent == f"{PREFIX}{AUX}":
                    has = AUX in own and one.name in self.catalog.aux_defaults
                else:
                    has = one.name in own
                if has or self._is_set(one):
                    self._heading(found, one).fields.append(one)
        return sorted(found, key=lambda section: section.key == MEMORY)

    def default(self, path: str) -> Any:
        """What the optimizer takes where the option is null; None if it has no such option."""
        one = self.form.fields[path]
        if one.parent == f"{PREFIX}{AUX}":
            return self._aux_default(one.name)
        return self.catalog.defaults[self.chosen].get(one.name)

    def shown_text(self, path: str) -> str:
        """What counts now: the option's own value, or the optimizer's default."""
        return self.form.text(path) or text_of(self.default(path))

    def placeholder(self, path: str) -> str:
        """What an empty field stands for: the optimizer's default."""
        default = text_of(self.default(path))
        return tr("default: {value}", value=default) if default else super().placeholder(path)

    def why_not(self, path: str, text: str) -> str:
        """Why an option can't have a value together with all others; empty if it can.

        What is wrong already, whatever this option is, does not count against it.
        """
        if path == OPTIMIZER:
            return super().why_not(path, text)
        value = parse_text(self.form.fields[path].kind, text)
        if value == self.form.value(path):
            return ""
        before = {problem.text for problem in self.catalog.problems(self.form.config)}
        copy = _with_value(self.form.config, path.split("."), value)
        new = [problem for problem in self.catalog.problems(copy) if problem.text not in before]
        if not new:
            return ""
        own, other = path.removeprefix(PREFIX), new[0].path.removeprefix(PREFIX)
        if other != own and new[0].text.startswith(f"{own} is "):
            # told of the trial, in which this one is set: what is set now is the other
            now = in_words(self.form.value(new[0].path))
            return tr(
                "“{option}” is {value} already; only one of the two can be used",
                option=self._title(new[0].path), value=now,
            )  # fmt: skip
        return f"{self._title(new[0].path)}: {self.form.words(new[0].text)}"

    def reset(self) -> None:
        """Gives every option the optimizer's default."""
        self.form.config.optimizer = TrainOptimizerConfig(optimizer=self.chosen)
        self.form.discard(PREFIX)
        self.form.changed("")

    def why_not_recommended(self, recommendation: Recommendation) -> str:
        """Why a recommendation is of no use; empty if it is. Where the optimizer lacks it, another one comes."""
        return recommendation.asks(self._with_needed(recommendation))

    def explain(self, recommendation: Recommendation) -> str:
        """What a recommendation does, where its numbers come from, and why it can't be taken now."""
        why = self.why_not_recommended(recommendation)
        text = recommendation.help(self._with_needed(recommendation))
        return tr("{text}\nNot now: {why}.", text=text, why=why) if why else text

    def _with_needed(self, recommendation: Recommendation) -> TrainConfig:
        """The config, with another optimizer if the chosen one lacks what a recommendation needs."""
        has = self.catalog.defaults[self.chosen]
        if all(option in has for option in recommendation.needs):
            return self.form.config
        return self.form.config.model_copy(update={"optimizer": TrainOptimizerConfig(optimizer=SCALED_OPTIMIZER)})

    def apply(self, recommendation: Recommendation) -> list[str]:
        """Takes a recommendation. Returns what it changed, for people: “Learning rate” 0.001."""
        self.choose(self._with_needed(recommendation).optimizer.optimizer)
        values = recommendation.values(self.form.config)
        self.form.set_values(values)
        return [f"“{self._title(path)}” {in_words(self.form.value(path))}" for path in (OPTIMIZER, *values)]

    def _title(self, path: str) -> str:
        """Without the name of the window."""
        return self.form.title(path).removeprefix(f"{self.form.title('optimizer')}{BETWEEN}")

    def _is_set(self, one: FormField) -> bool:
        return self.form.value(one.path) not in OFF or bool(self.form.error(one.path))

    def _aux_default(self, name: str) -> Any:
        """Shared options come from Muon's own, as in the trainer."""
        rule = self.catalog.defaults[self.chosen]
        aux = self.catalog.aux_options(self.form.config) if AUX in rule else self.catalog.aux_defaults
        return aux.get(name)

    def _heading(self, found: list[FormSection], one: FormField) -> FormSection:
        aux = one.parent == f"{PREFIX}{AUX}"
        declared = one.declared
        key = AUX if aux else declared.group.value
        title, help = declared.group.value, ""
        if aux:
            title, help = later("Auxiliary Adam"), later("Trains what Muon does not.")
        for section in found:
            if section.key == key:
                return section
        found.append(FormSection(key, title, help, declared.group))
        return found[-1]


def _with_value(config: BaseConfig, keys: list[str], value: Any) -> Any:
    """A copy with one value that is known to be valid; everything beside its path is shared."""
    if len(keys) > 1:
        inner = getattr(config, keys[0])
        inner = field_type(type(config), keys[0]).kind() if inner is None else inner
        value = _with_value(inner, keys[1:], value)
    return config.model_copy(update={keys[0]: value})
