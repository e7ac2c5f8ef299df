from modules.optim.arithmetic import unit_dot, unit_norm, unit_sum
from modules.optim.roles import WHOLE
from modules.optim.StackStep import StackStep

from torch import Tensor

MODES = ("disabled", "flattened", "per_rank")
TINY = 1e-30


def orthogonal_gradient(s: StackStep) -> Tensor:
    """OrthoGrad: the gradient without its part along the parameter, at its old length (arXiv 2501.04697).

    g⊥ = g − p·⟨p, g⟩/⟨p, p⟩, then g⊥·‖g‖/‖g⊥‖; over the whole tensor (`flattened`), or for each LoRA rank and OFT
    block by itself (`per_rank`). A parameter of zero leaves its gradient as it is.
    """
    mode = s.options["orthogonal_gradient"]
    if mode == "disabled":
        return s.g
    dims = s.role.unit if mode == "per_rank" else WHOLE
    g, p = s.g, s.p
    along = unit_dot(p, g, dims) / (unit_sum(p * p, dims) + TINY)
    across = g.addcmul(p, along, value=-1)
    return across.mul_(unit_norm(g, dims) / (unit_norm(across, dims) + TINY))
