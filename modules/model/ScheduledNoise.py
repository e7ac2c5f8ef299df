"""What families share that are trained to say the noise or velocity of a fixed schedule, as diffusion began (DDPM)."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from modules.model.BaseModel import BaseModel
from modules.model.diffusion_noise import draw_noise, draw_timesteps, offset_coefficients, zero_terminal_snr
from modules.model.Draw import Draw, per_image
from modules.model.ModelSource import ModelSource
from modules.util.config.errors import Problem, Remedy
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.LossWeight import LossWeight
from modules.util.enum.NoiseScheduler import NoiseScheduler
from modules.util.to_device import to_device
from modules.util.UserError import UserError

import torch
from torch import Tensor

import diffusers
from diffusers import DiffusionPipeline

# name of the diffusers class, and options that make it the sampler of that name
SCHEDULERS: dict[NoiseScheduler, tuple[str, dict[str, object]]] = {
    # which would keep what it thinks are pixels between -1 and 1
    NoiseScheduler.DDIM: ("DDIMScheduler", {"clip_sample": False}),
    NoiseScheduler.EULER: ("EulerDiscreteScheduler", {}),
    NoiseScheduler.EULER_A: ("EulerAncestralDiscreteScheduler", {}),
    NoiseScheduler.DPMPP: ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    NoiseScheduler.DPMPP_SDE: ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    NoiseScheduler.UNIPC: ("UniPCMultistepScheduler", {}),
    NoiseScheduler.EULER_KARRAS: ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    NoiseScheduler.DPMPP_KARRAS: (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    NoiseScheduler.DPMPP_SDE_KARRAS: (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    NoiseScheduler.UNIPC_KARRAS: ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
}


class ScheduledNoise(BaseModel):
    """Noise or velocity prediction on a fixed variance-preserving schedule: x_t = √ᾱ_t·x + √(1 − ᾱ_t)·ε.

    The target is ε, or √ᾱ_t·ε − √(1 − ᾱ_t)·x. It stands before a base that says what the denoiser is.

    Attributes:
        scheduler_config: of the base model's scheduler, with the prediction type of this run.
        alphas_cumprod: `[t]`, ᾱ of the training's schedule.
        velocity: whether the denoiser predicts the velocity.
    """

    def __init__(self, config: TrainConfig, source: ModelSource, device: torch.device) -> None:
        super().__init__(config, source, device)
        self.scheduler_config = self._scheduler_config(source.scheduler_config())
        scheduler = diffusers.DDPMScheduler.from_config(self.scheduler_config)
        alphas = scheduler.alphas_cumprod
        if config.rescale_noise_scheduler_to_zero_terminal_snr:
            alphas = zero_terminal_snr(alphas)
        self.alphas_cumprod = alphas
        self.velocity = self.scheduler_config["prediction_type"] == "v_prediction"
        # of the schedule as it was: on one that ends without signal all of the offset would go to the last step
        self.offset_psi = offset_coefficients(scheduler.alphas_cumprod.clamp(min=1e-8))

    @classmethod
    def check_config(cls, config: TrainConfig) -> list[Problem]:
        found = super().check_config(config)
        if config.force_epsilon_prediction and config.rescale_noise_scheduler_to_zero_terminal_snr:
            text = (
                "can't be on together with rescale_noise_scheduler_to_zero_terminal_snr, which needs v-prediction. "
                "Switch one of them off"
            )
            keys = ("force_epsilon_prediction", "rescale_noise_scheduler_to_zero_terminal_snr")
            found.append(Problem(keys[0], text, tuple(Remedy.of({key: False}) for key in keys)))
        if config.loss_weight_fn == LossWeight.SIGMA:
            text = f"{config.loss_weight_fn} has no meaning for {config.model_type}; it is for flow matching"
            found.append(Problem("loss_weight_fn", text, (Remedy.of({"loss_weight_fn": "CONSTANT"}),)))
        return found

    def _scheduler_config(self, loaded: Mapping[str, object]) -> dict[str, object]:
        config = dict(loaded)
        # some checkpoints leave it out, and noise is what it then means
        config.setdefault("prediction_type", "epsilon")
        # at the last step of such a schedule there is nothing but noise, which says nothing about the image
        if self.config.force_v_prediction or self.config.rescale_noise_scheduler_to_zero_terminal_snr:
            config["prediction_type"] = "v_prediction"
        if self.config.force_epsilon_prediction:
            config["prediction_type"] = "epsilon"
        if config["prediction_type"] not in ("epsilon", "v_prediction"):
            raise UserError(
                f"The base model's scheduler predicts {config['prediction_type']!r}; expected epsilon or v_prediction. "
                "Set `force_epsilon_prediction` or `force_v_prediction` if you know better."
            )
        return config

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Draw:
        timesteps = draw_timesteps(self.config, shape[0], len(self.alphas_cumprod), generator)
        noise, mixed = draw_noise(self.config, shape, generator, self.offset_psi[timesteps])
        alphas = self.alphas_cumprod[timesteps]
        tensors = (noise, mixed, alphas.sqrt(), (1 - alphas).sqrt())
        tensors = (to_device(tensor, self.device) for tensor in tensors)
        return Draw(timesteps, *tensors, snr=alphas / (1 - alphas).clamp(min=1e-12))

    def time_of(self, draw: Draw) -> Tensor:
        """The timesteps on the device, as the denoiser is told."""
        return to_device(draw.timesteps, self.device)

    def target(self, clean: Tensor, draw: Draw) -> Tensor:
        if not self.velocity:
            return draw.noise
        return per_image(draw.signal, clean) * draw.noise - per_image(draw.spread, clean) * clean

    @abstractmethod
    def make_pipeline(self, scheduler: diffusers.SchedulerMixin) -> DiffusionPipeline:
        """A diffusers pipeline around these very components, without text encoders: prompts come encoded."""

    def pipeline(self, scheduler: NoiseScheduler = NoiseScheduler.DDIM, last_timestep: bool = False):
        """The family's pipeline with the sampler of that name."""
        name, options = SCHEDULERS[scheduler]
        if last_timestep or self.config.rescale_noise_scheduler_to_zero_terminal_snr:
            options = {**options, "timestep_spacing": "trailing"}
        if self.config.rescale_noise_scheduler_to_zero_terminal_snr:
            options = {**options, "rescale_betas_zero_snr": True}
        pipeline = self.make_pipeline(getattr(diffusers, name).from_config(self.scheduler_config, **options))
        pipeline.set_progress_bar_config(disable=True)
        self.keep_masks_soft(pipeline)
        return pipeline

    def sampler(self, sample: SampleConfig) -> DiffusionPipeline:
        """`pipeline` as a sample asks for it. Raises UserError if there is no such scheduler."""
        if sample.noise_scheduler not in SCHEDULERS:
            raise UserError(
                f"noise_scheduler: found {sample.noise_scheduler}, expected one of {', '.join(map(str, SCHEDULERS))}."
            )
        return self.pipeline(sample.noise_scheduler, sample.force_last_timestep)

    def trained_scheduler_config(self) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if self.config.rescale_noise_scheduler_to_zero_terminal_snr:
            changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return {**self.scheduler_config, **changes}
