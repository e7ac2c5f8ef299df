from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.check import check_train_config, empty_texts
from modules.util.config.check_lists import list_problems
from modules.util.config.errors import ConfigError, Problem, Remedy
from modules.util.config.field_type import field_type
from modules.util.config.load import resolve_concepts
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainModelPartConfig import TrainModelPartConfig
from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.texts import all_of, any_of, tr
from modules.viewModel.concept_advice import ConceptAdvice, advice
from modules.viewModel.families import SUPPORTED, components_of
from modules.viewModel.field_text import in_words, shown_value
from modules.viewModel.FormModel import FormModel
from modules.viewModel.OptimizerCatalog import AUX, OptimizerCatalog
from modules.viewModel.option_titles import BETWEEN, list_lines
from modules.viewModel.recommended import companions, rate_for

OPTIMIZER = "optimizer.optimizer"
Checks = Callable[[TrainConfig], list[Problem]]
CHOICES = ("training_method", "peft_type", "lora_decompose", OPTIMIZER, "optimizer.scaled_optm")
"""Options after which others should be otherwise, too."""
COMPONENTS = frozenset(
    name for name in TrainConfig.model_fields if field_type(TrainConfig, name).kind is TrainModelPartConfig
)
"""Keys of the components, as `unet`."""


@dataclass(frozen=True)
class Offer:
    """What goes with a choice: in words, and path -> value; or what to look at.

    Attributes:
        text: for people.
        values: that are set when it is taken.
        concept: place of the concept to look at instead; None: there is none.
    """

    text: str
    values: dict[str, Any]
    concept: int | None = None


class TrainForm(FormModel):
    """The config of a run that is being edited, and everything that would keep it from starting.

    Attributes:
        catalog: what the optimizers take; None until it is loaded, which takes seconds.
        checks: what would stop a run; None until they are loaded, which takes longer.
        asked: the choice of `CHOICES` whose offer is open; empty: none is.
        inner_problems: list -> what is wrong in the window of its item that is edited.
        concept_advice: what to change in concepts, as it was found last.
    """

    config: TrainConfig

    def __init__(self, config: TrainConfig | None = None) -> None:
        super().__init__(config or TrainConfig())
        self.catalog: OptimizerCatalog | None = None
        self.checks: Checks | None = None
        self.asked = ""
        self.inner_problems: dict[str, list[Problem]] = {}
        self.concept_advice: list[ConceptAdvice] = []
        self._declined: set[str] = set()
        components = [section for section in self.sections if section.key in COMPONENTS]
        self._components = {one.path: section.key for section in components for one in section.fields}

    def replace(self, config: BaseConfig) -> None:
        """Edits another config from now on. Tokens stay: they are the user's, not a preset's."""
        assert isinstance(config, TrainConfig)
        self.asked = ""
        config.secrets = self.config.secrets
        super().replace(config)

    def choose_optimizer(self, optimizer: Optimizer) -> None:
        """Takes another optimizer. The options of the old one are remembered, those of the new one come back."""
        config = self.config
        if optimizer == config.optimizer.optimizer:
            return
        memory = dict(config.optimizer_defaults)
        if any(value is not None for value in config.optimizer.options().values()):
            memory[str(config.optimizer.optimizer)] = config.optimizer
        remembered = memory.pop(str(optimizer), TrainOptimizerConfig())
        config.optimizer = TrainOptimizerConfig.from_dict({**remembered.to_dict(), "optimizer": str(optimizer)})
        config.optimizer_defaults = memory
        self.asked = OPTIMIZER
        self.discard("optimizer.")
        self.changed("")

    def set_value(self, path: str, value: Any, text: str | None = None) -> str:
        """Sets a value. Another optimizer comes with the options that were last used with it."""
        if path == OPTIMIZER and value in tuple(Optimizer):
            self.choose_optimizer(Optimizer(value))
            return ""
        before, asked = self.value(path), self.asked
        # told to listeners with the change itself
        self.asked = path if path in CHOICES else asked
        error = super().set_value(path, value, text)
        if error or self.value(path) == before:
            self.asked = asked
        return error

    def offer(self) -> Offer | None:
        """What goes with the last choice of a method, an adapter or an optimizer, and is otherwise now; else what to
        change in a concept. None: nothing, or it was declined.
        """
        values = companions(self.config) if self.asked else {}
        if not values:
            one = next((one for one in self.concept_advice if one.text not in self._declined), None)
            return None if one is None else Offer(one.text, {}, one.place)
        words = [f"“{self.title(path)}” {in_words(value)}" for path, value in values.items()]
        rate = rate_for(self.config)
        chosen = f"“{self.title(self.asked).rpartition(BETWEEN)[2]}” {in_words(self.value(self.asked))}"
        one = len(words) == 1
        text = (
            tr("With {chosen} goes {what}.", chosen=chosen, what=words[0])
            if one
            else (tr("With {chosen} go {what}.", chosen=chosen, what=", ".join(words)))
        )
        if rate is not None and "learning_rate" in values:
            text += f" {tr('The rate is {source}.', source=tr(rate.source))}"
        return Offer(text, values)

    def take_offer(self) -> None:
        """Sets all that `offer` names."""
        found = self.offer()
        self.asked = ""
        self.set_values({} if found is None else found.values)

    def look_at_concepts(self) -> None:
        """Finds what to change in the concepts; their list may be a file."""
        try:
            self.concept_advice = advice(resolve_concepts(self.config, warn=lambda text: None))
        except (ConfigError, OSError):
            # which is told as a problem
            self.concept_advice = []

    def decline_offer(self) -> None:
        """Keeps everything as it is, until another choice is made."""
        found = self.offer()
        if found is not None and found.concept is not None:
            self._declined.add(found.text)
        self.asked = ""
        self.changed("")

    def conditions(self, path: str) -> list[str]:
        """The same, with one more: the model family must have the component."""
        missing, components = super().conditions(path), components_of(self.config.model_type)
        component = self.component_of(path)
        if component and components is not None and component not in components:
            missing.append(
                tr(
                    "a “{option}” that has the component {component}",
                    option=self.title("model_type"), component=self.title(component),
                )
            )  # fmt: skip
        return missing

    def needs(self, path: str) -> str:
        """The same in one line, and which optimizers have an option, if the chosen one has not."""
        missing, name = super().needs(path), path.rpartition(".")[2]
        if missing or self.catalog is None or path == OPTIMIZER or not path.startswith("optimizer."):
            return missing
        own = self.catalog.defaults.get(self.config.optimizer.optimizer, {})
        if path.startswith(f"optimizer.{AUX}."):
            if AUX not in own:
                return tr("a Muon optimizer")
            has = name in self.catalog.aux_defaults
            return "" if has else tr("an Adam beside Muon that has it; this one has not")
        if name in own:
            return ""
        takers = any_of(self.catalog.takers(name))
        if not takers:
            return tr("an optimizer that has it; none here does")
        return tr("the optimizer {names}", names=takers)

    def component_of(self, path: str) -> str:
        """The component that an option belongs to, empty if to none."""
        return self._components.get(path, "")

    def problems(self) -> list[Problem]:
        """Every reason why a run would not start, before the base model is opened.

        Until `checks` are loaded, what takes torch to know is missing; until `catalog` is, what optimizers say.
        """
        found, config = super().problems(), self.config
        if self.checks is not None:
            found += self.checks(config)
        else:
            found += [*check_train_config(config), *empty_texts(config), *list_problems(config, self.list_lines)]
            if config.model_type not in SUPPORTED:
                text = tr("{family} cannot be trained yet; choose another model type", family=config.model_type)
                found.append(Problem("model_type", text))
            found += self.catalog.problems(config) if self.catalog is not None else []
        for inner in self.inner_problems.values():
            found += inner
        return list(dict.fromkeys(found))

    def list_lines(self, key: str, error: ConfigError) -> list[str]:
        """What is wrong with a list in a file, by titles."""
        return list_lines(type(self.config), key, error)

    def load_checks(self) -> Checks:
        """The trainer's own list of checks, for which the model families are imported: off the window's thread."""
        from modules.trainer.checks import run_problems

        return lambda config: run_problems(config, lines=self.list_lines)

    def remedy_text(self, problem: Problem, remedy: Remedy) -> str:
        """What a remedy of a problem does, for a button: Set to SAFETENSORS; Set “Train dtype” to BFLOAT_16."""
        words = [
            tr("to {value}", value=shown_value(value))
            if path == problem.path
            else tr("“{option}” to {value}", option=self.title(path), value=shown_value(value))
            for path, value in remedy.values
        ]
        return tr("Set {what}", what=all_of(words))

    def apply_remedy(self, remedy: Remedy) -> None:
        """Changes the options that a remedy names."""
        for path, value in remedy.values:
            self.set_value(path, value)
