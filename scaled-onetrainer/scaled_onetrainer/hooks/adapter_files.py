"""Lets OneTrainer's files of OFT in the ELEMENTS form hold what every reader of OFT makes rotations of."""

from types import ModuleType
from typing import Any

from scaled_onetrainer.rotations import exporting
from scaled_onetrainer.run_hook import place


def apply(module: ModuleType) -> None:
    """Files are written with effective weights; backups, which OneTrainer calls INTERNAL, with the trained ones."""
    mixin = place(module, "LoRASaverMixin")
    save, internal = place(mixin, "_save"), place(place(module, "ModelFormat"), "INTERNAL")

    def _save(self: Any, model: Any, output_model_format: Any, *args: Any, **kwargs: Any) -> None:
        if output_model_format == internal:
            save(self, model, output_model_format, *args, **kwargs)
            return
        with exporting():
            save(self, model, output_model_format, *args, **kwargs)

    mixin._save = _save
