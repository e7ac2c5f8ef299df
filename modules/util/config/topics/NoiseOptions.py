from functools import partial

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.TimestepDistribution import TimestepDistribution

G = OptionGroup.NOISE
SHAPED = {"timestep_distribution": tuple(d for d in TimestepDistribution if d not in ("UNIFORM", "COS_MAP"))}
OFFSET = {"timestep_distribution": tuple(d for d in SHAPED["timestep_distribution"] if d != "HEAVY_TAIL")}
basic = partial(option, group=G)
advanced = partial(option, group=G, advanced=True)


class NoiseOptions(BaseConfig):
    """How noise is made and which timesteps are trained."""

    offset_noise_weight: float = basic(
        0.0,
        "Offset noise",
        "Adds one random value to each whole channel, so that very dark and bright images are "
        "learnt. Around 0.05 if at all.",
        ge=0,
    )
    generalized_offset_noise: bool = advanced(
        False,
        "Generalised offset noise",
        "Makes the offset depend on the timestep, which fits models with a noise schedule better.",
    )
    perturbation_noise_weight: float = advanced(
        0.0,
        "Perturbation noise",
        "Extra noise on the input that the model is not asked to predict; a regulariser.",
        ge=0,
    )
    rescale_noise_scheduler_to_zero_terminal_snr: bool = advanced(
        False, "Zero terminal SNR", "Changes the schedule so that the last timestep is pure noise. For v-prediction."
    )
    force_v_prediction: bool = advanced(
        False, "Force v-prediction", "Trains toward velocity, whatever the base model says."
    )
    force_epsilon_prediction: bool = advanced(
        False, "Force epsilon prediction", "Trains toward noise, whatever the base model says."
    )
    min_noising_strength: float = basic(
        0.0, "Lowest noise", "Start of the trained range of timesteps; 0 is a clean image.", ge=0, le=1
    )
    max_noising_strength: float = basic(
        1.0, "Highest noise", "End of the trained range of timesteps; 1 is pure noise.", ge=0, le=1
    )
    timestep_distribution: TimestepDistribution = basic(
        TimestepDistribution.UNIFORM,
        "Timestep distribution",
        "How often each timestep is drawn. LOGIT_NORMAL suits flow-matching models.",
    )
    noising_weight: float = basic(
        0.0,
        "Distribution weight",
        "Shape of the distribution: steepness, width, or the first exponent of BETA.",
        visible_when=SHAPED,
    )
    noising_bias: float = basic(
        0.0,
        "Distribution bias",
        "Moves the distribution toward more (positive) or less noise; the second exponent of BETA.",
        visible_when=OFFSET,
    )
    timestep_shift: float = basic(
        1.0, "Timestep shift", "Values above 1 train noisier timesteps more, as larger images need.", gt=0
    )
    dynamic_timestep_shifting: bool = basic(
        False,
        "Dynamic shift",
        "Computes the shift from each image's size, in families that define it, and takes it instead of "
        "`timestep_shift`.",
    )
