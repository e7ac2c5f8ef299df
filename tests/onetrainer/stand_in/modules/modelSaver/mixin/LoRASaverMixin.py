from pathlib import Path

from modules.util.enum.ModelFormat import ModelFormat

from safetensors.torch import save_file


class LoRASaverMixin:
    def save(self, model, output_model_format, output_model_destination):
        self._save(model, output_model_format, output_model_destination)

    def _save(self, model, output_model_format, output_model_destination):
        path = Path(output_model_destination)
        if output_model_format is ModelFormat.INTERNAL:
            path = path / "lora" / "lora.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in self._get_state_dict(model).items()}, path)
