from scaled_optim.arithmetic import unit_sum
from scaled_optim.roles import WHOLE
from scaled_optim.StackStep import StackStep

import torch
from torch import Tensor


def cautious_direction(s: StackStep, u: Tensor) -> Tensor:
    """`use_cautious`: zero where direction and gradient disagree, the rest enlarged to keep the mean size
    (arXiv 2411.16085). `use_grams`: the direction's size with the gradient's sign (arXiv 2412.17107).
    """
    if s.options["use_grams"]:
        return torch.copysign(u, s.g)
    if s.options["use_cautious"]:
        agree = (u * s.g).gt_(0)
        share = unit_sum(agree, WHOLE) / (u.shape[1] * u.shape[2])
        return u * agree.div_(share.clamp_(min=1e-3))
    return u
