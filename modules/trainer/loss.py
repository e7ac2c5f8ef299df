"""From a prediction to one loss per image. Axes: b batch, c channel, h and w latent sides; of a video frames, too."""

from modules.model.Prediction import Prediction
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.LossScaler import LossScaler
from modules.util.enum.LossWeight import LossWeight
from modules.util.to_device import to_device
from modules.util.UserError import UserError

import torch.nn.functional as F
from torch import Tensor

LOG_2 = 0.6931471805599453
# keeps the debiased weight finite at the cleanest timesteps, as trainers of this field do
DEBIASED_SNR_LIMIT = 1000.0


def elementwise_loss(config: TrainConfig, predicted: Tensor, target: Tensor) -> Tensor:
    """Weighted sum of squared, absolute, log-cosh and Huber errors, `[b, c, ..., h, w]`, float32."""
    predicted, target = predicted.float(), target.float()
    terms = []
    if config.mse_strength:
        terms.append(config.mse_strength * F.mse_loss(predicted, target, reduction="none"))
    if config.mae_strength:
        terms.append(config.mae_strength * F.l1_loss(predicted, target, reduction="none"))
    if config.log_cosh_strength:
        error = predicted - target
        # log cosh x = x + log(1 + e^(-2x)) - log 2, which does not overflow
        terms.append(config.log_cosh_strength * (error + F.softplus(-2 * error) - LOG_2))
    if config.huber_strength:
        huber = F.huber_loss(predicted, target, reduction="none", delta=config.huber_delta)
        terms.append(config.huber_strength * huber)
    return sum(terms[1:], terms[0])


def timestep_weight(config: TrainConfig, prediction: Prediction) -> Tensor | None:
    """`[b]` weight of each image's timestep; None for a constant one.

    min-SNR-γ: min(snr, γ)/snr (arXiv 2303.09556); debiased: 1/√snr (arXiv 2310.08442); P2: (1 + snr)^−γ
    (arXiv 2204.00227). For velocity targets the divisor is snr + 1. Sigma, of flow matching: the share of noise.

    Raises:
        UserError: the family has no such weight.
    """
    if config.loss_weight_fn == LossWeight.CONSTANT:
        return None
    needed = prediction.sigma if config.loss_weight_fn == LossWeight.SIGMA else prediction.snr
    if needed is None:
        raise UserError(f"loss_weight_fn: {config.loss_weight_fn} has no meaning for {config.model_type}.")
    if config.loss_weight_fn == LossWeight.SIGMA:
        return needed
    snr, gamma = needed, config.loss_weight_strength
    divisor = snr + 1 if prediction.velocity else snr
    match config.loss_weight_fn:
        case LossWeight.MIN_SNR_GAMMA:
            return snr.clamp(max=gamma) / divisor
        case LossWeight.DEBIASED_ESTIMATION:
            return (snr.clamp(max=DEBIASED_SNR_LIMIT) + int(prediction.velocity)).rsqrt()
        case LossWeight.P2:
            return (1 + divisor) ** -gamma
        case _:
            raise AssertionError(config.loss_weight_fn)


def image_losses(config: TrainConfig, prediction: Prediction, loss_weight: Tensor, mask: Tensor | None) -> Tensor:
    """`[b]` loss of each image: masked mean over its latents, times timestep weight and concept weight.

    Args:
        config: strengths, masks, weights.
        prediction: what the model said.
        loss_weight: `[b]` weight of each image's concept.
        mask: `[b, 1, h, w]` in 0 … 1, with as many axes as the prediction, or None.
    """
    losses = elementwise_loss(config, prediction.predicted, prediction.target)
    if mask is not None:
        mask = to_device(mask, losses.device)
        losses = losses * mask
    own_axes = tuple(range(1, losses.dim()))
    losses = losses.mean(dim=own_axes)
    if mask is not None and config.normalize_masked_area_loss:
        losses = losses / mask.mean(dim=own_axes).clamp(min=1e-6)
    weight = timestep_weight(config, prediction)
    if weight is not None:
        losses = losses * weight.to(losses.device, losses.dtype)
    return losses * to_device(loss_weight, losses.device, losses.dtype)


def loss_scale(config: TrainConfig) -> float:
    """The factor of `loss_scaler`."""
    scale = 1.0
    if config.loss_scaler in (LossScaler.BATCH, LossScaler.BOTH):
        scale *= config.batch_size
    if config.loss_scaler in (LossScaler.GRADIENT_ACCUMULATION, LossScaler.BOTH):
        scale *= config.gradient_accumulation_steps
    return scale
