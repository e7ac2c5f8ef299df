import torch

SCALE = 1024.0


class CustomGradScaler:
    """Scales a loss, and steps parameters one by one; nobody calls `step` of the optimizer then."""

    def scale(self, loss):
        return loss * SCALE

    def unscale_parameter_(self, parameter, optimizer):
        parameter.grad.div_(SCALE)

    def maybe_opt_step_parameter(self, parameter, param_group, i, optimizer):
        if torch.isfinite(parameter.grad).all():
            optimizer.step_parameter(parameter, param_group, i)
