from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.check import check_train_config
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.errors import ConfigError, Problem
from modules.util.config.field_type import field_type
from modules.util.config.is_missing import is_missing
from modules.util.config.load import resolve_concepts, resolve_samples
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainModelPartConfig import TrainModelPartConfig
from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig
from modules.util.enum.ConceptType import ConceptType
from modules.util.enum.Optimizer import Optimizer
from modules.viewModel.families import SUPPORTED, parts_of
from modules.viewModel.FormModel import FormModel
from modules.viewModel.OptimizerCatalog import AUX, OptimizerCatalog, given_options
from modules.viewModel.option_titles import list_lines
from modules.viewModel.paths import is_folder

OPTIMIZER = "optimizer.optimizer"
PARTS = frozenset(
    name for name in TrainConfig.model_fields if field_type(TrainConfig, name).kind is TrainModelPartConfig
)
"""Keys of the parts of models, as `unet`."""


class TrainForm(FormModel):
    """The config of a run that is being edited, and everything that would keep it from starting.

    Attributes:
        catalog: what the optimizers take; None until it is loaded, which takes seconds.
        inner_problems: list -> what is wrong in the window of its item that is edited.
    """

    config: TrainConfig

    def __init__(self, config: TrainConfig | None = None) -> None:
        super().__init__(config or TrainConfig())
        self.catalog: OptimizerCatalog | None = None
        self.inner_problems: dict[str, list[Problem]] = {}
        parts = [section for section in self.sections if section.key in PARTS]
        self._parts = {one.path: section.key for section in parts for one in section.fields}

    def replace(self, config: BaseConfig) -> None:
        """Edits another config from now on. Tokens stay: they are the user's, not a preset's."""
        assert isinstance(config, TrainConfig)
        config.secrets = self.config.secrets
        super().replace(config)

    def choose_optimizer(self, optimizer: Optimizer) -> None:
        """Takes another optimizer. The options of the old one are remembered, those of the new one come back."""
        config = self.config
        if optimizer == config.optimizer.optimizer:
            return
        memory = dict(config.optimizer_defaults)
        if any(value is not None for value in given_options(config.optimizer).values()):
            memory[str(config.optimizer.optimizer)] = config.optimizer
        remembered = memory.pop(str(optimizer), TrainOptimizerConfig())
        config.optimizer = TrainOptimizerConfig.from_dict({**remembered.to_dict(), "optimizer": str(optimizer)})
        config.optimizer_defaults = memory
        self.discard("optimizer.")
        self.changed("")

    def set_value(self, path: str, value: Any, text: str | None = None) -> str:
        """Sets a value. Another optimizer comes with the options that were last used with it."""
        if path == OPTIMIZER and value in tuple(Optimizer):
            self.choose_optimizer(Optimizer(value))
            return ""
        return super().set_value(path, value, text)

    def conditions(self, path: str) -> list[str]:
        """The same, with one more: the model family must have the part."""
        missing, parts = super().conditions(path), parts_of(self.config.model_type)
        part = self.part_of(path)
        if part and parts is not None and part not in parts:
            missing.append(f"a “{self.title('model_type')}” that has the part {self.title(part)}")
        return missing

    def needs(self, path: str) -> str:
        """The same in one line, and which optimizers have an option, if the chosen one has not."""
        missing, name = super().needs(path), path.rpartition(".")[2]
        if missing or self.catalog is None or path == OPTIMIZER or not path.startswith("optimizer."):
            return missing
        own = self.catalog.defaults.get(self.config.optimizer.optimizer, {})
        if path.startswith(f"optimizer.{AUX}."):
            if AUX not in own:
                return "a Muon optimizer"
            return "" if name in self.catalog.aux_defaults else "an Adam beside Muon that has it; this one has not"
        if name in own:
            return ""
        takers = " or ".join(self.catalog.takers(name))
        return f"the optimizer {takers}" if takers else "an optimizer that has it; none here does"

    def part_of(self, path: str) -> str:
        """The model part that an option belongs to, empty if to none."""
        return self._parts.get(path, "")

    def problems(self) -> list[Problem]:
        """Every reason why a run would not start, as far as it can be known without loading a model."""
        found = [*super().problems(), *check_train_config(self.config), *self._missing(), *self._lists()]
        for inner in self.inner_problems.values():
            found += inner
        if self.catalog is not None:
            found += self.catalog.problems(self.config)
        return list(dict.fromkeys(found))

    def _missing(self) -> list[Problem]:
        config = self.config
        needed = {
            "base_model_name": "a folder, a file or a hub name",
            "output_model_destination": "the file to write",
            "workspace_dir": "a folder",
            "cache_dir": "a folder",
        }
        found = [
            Problem(key, f"is empty, expected {what}")
            for key, what in needed.items()
            if not getattr(config, key).strip()
        ]
        if config.model_type not in SUPPORTED:
            found.append(Problem("model_type", f"{config.model_type} cannot be trained yet; choose another model type"))
        return found

    def _lists(self) -> list[Problem]:
        """What is wrong with concepts and samples, in the config or in files of their own."""
        config, found = self.config, []
        for key, file_key, resolve, hint in (
            ("concepts", "concept_file_name", resolve_concepts, "add a folder of images in the tab concepts"),
            ("samples", "sample_definition_file_name", resolve_samples, "add a sample in the tab sampling"),
        ):
            file = getattr(config, file_key)
            if getattr(config, key) is None and file.strip() and is_missing(file):
                text = f"there is no such file yet: {file!r}; {hint}, or name another file"
                found.append(Problem(file_key, text))
                continue
            try:
                items = resolve(config, warn=lambda _: None)
            except ConfigError as error:
                found += [Problem(file_key, line) for line in list_lines(type(config), key, error)]
            else:
                found += self._concepts(items) if key == "concepts" else []
        return found

    def _concepts(self, concepts: list[ConceptConfig]) -> list[Problem]:
        used = [concept for concept in concepts if concept.enabled]
        if not any(concept.type != ConceptType.VALIDATION for concept in used):
            return [Problem("concepts", "there is nothing to train on; add a folder of images in the tab concepts")]
        lost = [concept for concept in used if not concept.path.strip() or not is_folder(concept.path)]
        names = [repr(concept.name) if concept.name else "a concept" for concept in lost]
        return [
            Problem("concepts", f"{name}: there is no folder {concept.path!r}")
            for name, concept in zip(names, lost, strict=True)
        ]
