from functools import partial

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.LossScaler import LossScaler
from modules.util.enum.LossWeight import LossWeight
from modules.util.enum.OptionGroup import OptionGroup

G = OptionGroup.LOSS
basic = partial(option, group=G)
advanced = partial(option, group=G, advanced=True)


class LossOptions(BaseConfig):
    """What the loss is made of and how timesteps are weighted in it."""

    mse_strength: float = basic(1.0, "MSE", "Weight of the mean squared error.", ge=0)
    mae_strength: float = basic(0.0, "MAE", "Weight of the mean absolute error, which minds outliers less.", ge=0)
    log_cosh_strength: float = basic(
        0.0, "Log-cosh", "Weight of log-cosh, which is squared for small and absolute for large errors.", ge=0
    )
    huber_strength: float = basic(
        0.0, "Huber", "Weight of the Huber loss: squared below `huber_delta`, linear above.", ge=0
    )
    huber_delta: float = advanced(1.0, "Huber delta", "Error at which the Huber loss turns linear.", gt=0)
    vb_loss_strength: float = advanced(
        1.0, "Variational bound", "Weight of the variance loss in families that predict a variance.", ge=0
    )
    loss_weight_fn: LossWeight = basic(
        LossWeight.CONSTANT,
        "Timestep weighting",
        "Weights of timesteps in the loss. MIN_SNR_GAMMA often learns faster "
        "with noise-predicting models; SIGMA is for flow matching.",
    )
    loss_weight_strength: float = basic(
        5.0,
        "Weighting strength",
        "Gamma of MIN_SNR_GAMMA and P2; 5 and 1 are usual.",
        ge=0,
        visible_when={"loss_weight_fn": (LossWeight.MIN_SNR_GAMMA, LossWeight.P2)},
    )
    loss_scaler: LossScaler = advanced(
        LossScaler.NONE,
        "Loss scaler",
        "Multiplies the loss by batch size, accumulation steps, or both. Adaptive optimizers hardly notice.",
    )
