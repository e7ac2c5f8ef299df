from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.LossScaler import LossScaler
from modules.util.enum.LossWeight import LossWeight
from modules.util.enum.OptionGroup import OptionGroup

G = OptionGroup.LOSS


class LossOptions(BaseConfig):
    """What the loss is made of and how timesteps are weighted in it."""

    mse_strength: float = option(1.0, "MSE", "Weight of the mean squared error.", G, ge=0)
    mae_strength: float = option(0.0, "MAE", "Weight of the mean absolute error, which minds outliers less.", G, ge=0)
    log_cosh_strength: float = option(
        0.0, "Log-cosh", "Weight of log-cosh, which is squared for small and absolute for large errors.", G, ge=0
    )
    huber_strength: float = option(
        0.0, "Huber", "Weight of the Huber loss: squared below `huber_delta`, linear above.", G, ge=0
    )
    huber_delta: float = option(
        1.0, "Huber delta", "Error at which the Huber loss turns linear.", G, gt=0, advanced=True
    )
    vb_loss_strength: float = option(
        1.0,
        "Variational bound",
        "Weight of the variance loss in families that predict a variance.",
        G,
        ge=0,
        advanced=True,
    )
    loss_weight_fn: LossWeight = option(
        LossWeight.CONSTANT,
        "Timestep weighting",
        "Weights of timesteps in the loss. MIN_SNR_GAMMA often learns faster "
        "with noise-predicting models; SIGMA is for flow matching.",
        G,
    )
    loss_weight_strength: float = option(
        5.0,
        "Weighting strength",
        "Gamma of MIN_SNR_GAMMA and P2; 5 and 1 are usual.",
        G,
        ge=0,
        visible_when={"loss_weight_fn": (LossWeight.MIN_SNR_GAMMA, LossWeight.P2)},
    )
    loss_scaler: LossScaler = option(
        LossScaler.NONE,
        "Loss scaler",
        "Multiplies the loss by batch size, accumulation steps, or both. Adaptive optimizers hardly notice.",
        G,
        advanced=True,
    )
