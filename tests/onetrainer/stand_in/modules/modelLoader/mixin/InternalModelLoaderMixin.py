import json
from pathlib import Path

import torch

from safetensors.torch import load_file


class InternalModelLoaderMixin:
    def _load_internal_data(self, model, model_name):
        folder = Path(model_name)
        model.optimizer_state_dict = torch.load(folder / "optimizer" / "optimizer.pt", weights_only=True)
        model.train_progress.global_step = json.loads((folder / "meta.json").read_text())["global_step"]
        model.adapter_state = load_file(folder / "lora" / "lora.safetensors")
