import json
from pathlib import Path

import torch


class InternalModelSaverMixin:
    def _save_internal_data(self, model, destination):
        folder = Path(destination)
        (folder / "optimizer").mkdir(parents=True, exist_ok=True)
        names, optimizer = model.param_group_mapping, str(model.train_config.optimizer.optimizer)
        added = {"param_group_mapping": names, "param_group_optimizer_mapping": [optimizer] * len(names)}
        torch.save({**model.optimizer.state_dict(), **added}, folder / "optimizer" / "optimizer.pt")
        (folder / "meta.json").write_text(json.dumps({"global_step": model.train_progress.global_step}))
