from collections.abc import Mapping
from functools import partial
from typing import Any

from scaled_optim.features.cautious import cautious_direction
from scaled_optim.features.moments import first_moment
from scaled_optim.features.normed_momentum import check_normed, normed_direction
from scaled_optim.features.sign import signed_pull
from scaled_optim.features.sinkhorn import sinkhorn, structured_pull
from scaled_optim.rules.NormedRule import NormedRule
from scaled_optim.rules.Rule import COMMON, MOMENTUM
from scaled_optim.StackStep import StackStep

import torch
from torch import Tensor


class SinkSGDAdv(NormedRule):
    """SGD with momentum whose steps have rows and columns of RMS 1 (SinkGD, arXiv 2502.06742).

    m ← μ·m + (1 − μ)·g, u = sinkhorn(m), see `sinkhorn`; for vectors u = sign(m). The paper has no momentum.

    `sinkhorn_iterations`: how often rows and columns are normalised. `orthogonal_sinkhorn`: each time, a row or column
    loses what lies along the parameter's own. `normed_momentum`: m averages sinkhorn(g), and u = m. `snr_cond`
    with it: u = (4/π)·atan(m/√(d·e)), larger in rows and columns whose directions agree, see `normed_direction`.
    `geometric_wd`: decay is stronger for large rows and columns, and along sign(p) for vectors.
    """

    name = "SINKSGD_ADV"
    defaults = {
        **COMMON,
        **MOMENTUM,
        "momentum": 0.9,
        "sinkhorn_iterations": 5,
        "orthogonal_sinkhorn": False,
        "normed_momentum": False,
        "snr_cond": False,
        "geometric_wd": False,
        "use_cautious": False,
        "use_grams": False,
    }

    def check(self, options: Mapping[str, Any]) -> None:
        super().check(options)
        check_normed(options)

    def direction(self, s: StackStep) -> Tensor:
        doubt = None
        if s.options["normed_momentum"]:
            u, doubt = normed_direction(s, self.normalised(s, s.g), structured=not s.vector)
        else:
            u = self.normalised(s, first_moment(s, s.g, s.options["momentum"]))
        s.pull = partial(signed_pull, s, doubt=doubt) if s.vector else partial(structured_pull, doubts=doubt)
        return cautious_direction(s, u)

    def normalised(self, s: StackStep, x: Tensor) -> Tensor:
        """x with rows and columns of RMS 1, of vectors the sign; a fresh tensor."""
        if s.vector:
            return torch.sign(x)
        return sinkhorn(x, s.options["sinkhorn_iterations"], s.p if s.options["orthogonal_sinkhorn"] else None)
