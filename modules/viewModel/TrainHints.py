from modules.util.config.topics.AdapterOptions import AdapterOptions
from modules.util.enum.ModelType import ModelType
from modules.util.enum.Optimizer import Optimizer
from modules.util.texts import later, tr
from modules.viewModel.families import SUPPORTED
from modules.viewModel.field_text import number_text
from modules.viewModel.FieldHints import NOTHING, Choice, FieldHints, Note
from modules.viewModel.format_help import comfy_note
from modules.viewModel.recommended import rate_for
from modules.viewModel.TrainForm import OPTIMIZER, TrainForm

UNSUPPORTED = later("cannot be trained with yet")


class TrainHints(FieldHints):
    """The same for the config of a run: families without code and optimizers that don't fit come last."""

    form: TrainForm

    def __init__(self, form: TrainForm) -> None:
        super().__init__(form)
        # of the output format: what it depends on, and the note
        self._noted: tuple[tuple, Note] = ((), NOTHING)

    def choices(self, path: str) -> list[Choice]:
        """What an option can be chosen from."""
        found = super().choices(path)
        return sorted(found, key=lambda choice: bool(choice.why_not)) if path in ("model_type", OPTIMIZER) else found

    def help(self, path: str) -> str:
        """The same; of the learning rate, also which one goes with what is trained, and whose it is."""
        text = super().help(path)
        rate = rate_for(self.form.config) if path == "learning_rate" else None
        if rate is None:
            return text
        goes = tr("With what is chosen goes {rate}: {source}.", rate=number_text(rate.value), source=tr(rate.source))
        return f"{text}\n{goes}"

    def note(self, path: str) -> Note:
        """The same; of the output format, what ComfyUI makes of it, as soon as torch is there."""
        if path != "output_model_format" or self.form.checks is None:
            return super().note(path)
        # asked for at each key that is typed anywhere in the form
        config = self.form.config
        depends = (config.training_method, config.model_type, config.output_model_format, config.lora_model_name)
        key = (*depends, *(getattr(config, name) for name in AdapterOptions.model_fields))
        if key != self._noted[0]:
            found = comfy_note(config)
            self._noted = key, Note(self.form.words(found.text), found.warns)
        return self._noted[1]

    def why_not(self, path: str, text: str) -> str:
        """Why an option can't be chosen. Of optimizers that is known as soon as the catalog is loaded."""
        catalog = self.form.catalog
        if path == "model_type":
            return "" if ModelType(text) in SUPPORTED else tr(UNSUPPORTED)
        if path == OPTIMIZER and catalog is not None:
            return self.form.words(catalog.misfit(self.form.config, Optimizer(text)))
        return ""
