"""What sampled pictures say of a trained model: is the concept in them, and are ordinary scenes still right?"""

from pathlib import Path

from benchmarks.forgetting.tasks import TaskSize
from benchmarks.tinyBase import sample

import torch
from torch import nn

GUIDANCE = 1.5
BATCH = 16


class PictureJudge:
    """Samples with a denoiser in the pipeline of a base model and judges the pictures by classical image analysis.

    Args:
        base: folder of the model.
        size: how many pictures, and in how many steps.
    """

    def __init__(self, base: Path, size: TaskSize) -> None:
        self.base, self.size = base, size
        self._pipeline = self._base_rates = None

    def base_rates(self, untrained: nn.Module) -> dict[str, float]:
        """Those of the base model, measured once.

        Args:
            untrained: its denoiser.
        """
        if self._base_rates is None:
            self._base_rates = self.rates(untrained)
        return self._base_rates

    @torch.no_grad()
    def rates(self, unet: nn.Module) -> dict[str, float]:
        """Shares in [0, 1]: `concept` of the concept's pictures in which it is seen, `ordinary` of all that was asked
        for in ordinary scenes, such as shapes and colors, that is right.

        Args:
            unet: the denoiser, with its adapters hooked.
        """
        if self._pipeline is None:
            self._pipeline = sample.load_pipeline(self.base, "cpu")
        self._pipeline.unet = unet
        settings = {"steps": self.size.sampling_steps, "guidance": GUIDANCE, "seed": 0, "batch": BATCH}
        scenes = sample.score_scenes(self._pipeline, self.size.scenes, label="scenes", **settings)
        lumos, styles = sample.score_concept(
            self._pipeline, self.size.lumos, self.size.styles, label="concept", **settings
        )
        shown = [one.right["lumo"] for one in lumos] + [one.right["style"] for one in styles]
        answers = [right for one in scenes for right in one.right.values()]
        return {"concept": sum(shown) / len(shown), "ordinary": sum(answers) / len(answers)}
