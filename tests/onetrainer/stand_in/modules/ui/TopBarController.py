from pathlib import Path


class TopBarController:
    def load_preset_tree(self, dir="training_presets"):
        return [(path.stem, str(path)) for path in sorted(Path(dir).glob("#*.json"))]
