"""What families with a transformer and flow matching share."""

import inspect
import math
from typing import Any, ClassVar

from modules.model.diffusion_noise import draw_noise, draw_noise_levels
from modules.model.Draw import Draw
from modules.model.ModelSource import ModelSource
from modules.model.TransformerModel import TransformerModel
from modules.util.config.errors import Problem, Remedy
from modules.util.config.field_type import default_of
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.LossWeight import LossWeight
from modules.util.to_device import to_device
from modules.util.UserError import UserError

import torch
from torch import Tensor

from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

# options that a schedule with a fixed noise level for each step has
_OF_SCHEDULES = (
    "rescale_noise_scheduler_to_zero_terminal_snr", "force_v_prediction", "force_epsilon_prediction",
    "generalized_offset_noise",
)  # fmt: skip


class FlowModel(TransformerModel):
    """Flow matching: x_σ = (1 − σ)·x + σ·ε, the target is ε − x (arXiv 2210.02747); σ is continuous.

    With `dynamic_timestep_shifting` the shift follows from the number of tokens of an image, as the model's scheduler
    says, and `timestep_shift` is not used. A scheduler with one shift for all sizes has defaults for that, too; whether
    they are of use says the family (`shifts_any_model`).

    Attributes:
        scheduler_config: of the base model's scheduler.
    """

    shifts_by_size = True
    # whether `dynamic_timestep_shifting` is for models, too, whose scheduler has one shift for all sizes
    shifts_any_model: ClassVar[bool] = True

    def __init__(self, config: TrainConfig, source: ModelSource, device: torch.device) -> None:
        super().__init__(config, source, device)
        self.scheduler_config = self._scheduler_config(source)

    def _scheduler_config(self, source: ModelSource) -> dict[str, Any]:
        found = source.scheduler_config()
        if found.get("use_flow_sigmas"):
            # solvers of higher order call it otherwise, and have options of their own
            known = inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters
            shared = {name: value for name, value in found.items() if name in known}
            found = {**shared, "shift": found["flow_shift"]}
        if "shift" not in found:
            raise UserError(
                f"The base model {source.name} has no flow-matching scheduler: its scheduler_config.json lacks shift. "
                "Download it again."
            )
        # with the defaults of what such a scheduler does not say
        own = dict(FlowMatchEulerDiscreteScheduler.from_config(found).config)
        if self.config.dynamic_timestep_shifting and not (self.shifts_any_model or own["use_dynamic_shifting"]):
            raise UserError(
                f"dynamic_timestep_shifting: found true, but the scheduler of {source.name} shifts images of all sizes "
                f"by {own['shift']:g}. Set it to false, and timestep_shift to {own['shift']:g} for the same shift.",
                Remedy.of({"dynamic_timestep_shifting": False, "timestep_shift": own["shift"]}),
            )
        return own

    @classmethod
    def check_config(cls, config: TrainConfig) -> list[Problem]:
        found = super().check_config(config)
        for key in _OF_SCHEDULES:
            if getattr(config, key):
                text = f"has no meaning for {config.model_type}; set it to its default"
                found.append(Problem(key, text, (Remedy.of({key: default_of(TrainConfig, key)}),)))
        if config.loss_weight_fn not in (LossWeight.CONSTANT, LossWeight.SIGMA):
            text = f"{config.loss_weight_fn} has no meaning for {config.model_type}; expected CONSTANT or SIGMA"
            found.append(Problem("loss_weight_fn", text, (Remedy.of({"loss_weight_fn": "CONSTANT"}),)))
        return found

    # -- training -------------------------------------------------------------------------------------------------

    def shift_of_size(self, tokens: int) -> float:
        """e^μ with μ linear in the number of tokens of an image; as the scheduler's options say."""
        options = self.scheduler_config
        low, high = options["base_image_seq_len"], options["max_image_seq_len"]
        slope = (options["max_shift"] - options["base_shift"]) / (high - low)
        mu = options["base_shift"] + slope * (tokens - low)
        return math.exp(mu) if options["time_shift_type"] == "exponential" else mu

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Draw:
        config = self.config
        shift = self.shift_of_size(self.token_count(shape)) if config.dynamic_timestep_shifting else None
        sigma = draw_noise_levels(config, shape[0], generator, shift).float()
        noise, mixed = draw_noise(config, shape, generator)
        tensors = (to_device(tensor, self.device) for tensor in (noise, mixed, 1 - sigma, sigma))
        return Draw(1000 * sigma, *tensors, sigma=sigma)

    def target(self, clean: Tensor, draw: Draw) -> Tensor:
        return draw.noise - clean

    def time_of(self, draw: Draw) -> Tensor:
        return draw.spread

    # -- samples --------------------------------------------------------------------------------------------------

    def pipeline(self, steps: int) -> DiffusionPipeline:
        """The family's pipeline with the one sampler that there is for flow matching, for a number of steps."""
        # a last noise level apart from the first; diffusers would divide by zero for a single one
        changes = {"shift_terminal": None} if steps == 1 else {}
        pipeline = self.make_pipeline(FlowMatchEulerDiscreteScheduler.from_config(self.scheduler_config, **changes))
        pipeline.set_progress_bar_config(disable=True)
        self.keep_masks_soft(pipeline)
        return pipeline

    def sampler(self, sample: SampleConfig) -> DiffusionPipeline:
        """There is one for flow matching, whatever `noise_scheduler` says."""
        return self.pipeline(sample.diffusion_steps)
