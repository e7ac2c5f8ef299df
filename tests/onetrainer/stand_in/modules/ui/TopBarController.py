import json
from pathlib import Path


class TopBarController:
    def __init__(self, config):
        self.train_config = config

    def load_preset_tree(self, dir="training_presets"):
        return [(path.stem, str(path)) for path in sorted(Path(dir).glob("#*.json"))]

    def load_config_from_file(self, filename):
        path = Path(filename)
        return self.train_config.from_dict(json.loads(path.read_text())) if path.is_file() else None
