from collections.abc import Mapping
from functools import partial
from typing import Any

from scaled_optim.features.moments import SECOND, second_moment
from scaled_optim.features.orthogonalization import orthogonalized
from scaled_optim.rules.AdamWAdv import divided, epsilon
from scaled_optim.rules.MuonAdv import MUON, SKETCH_STREAM, MuonAdv, even_rows, muon_sized
from scaled_optim.StackStep import StackStep

import torch
from torch import Tensor


class AdaMuonAdv(MuonAdv):
    """AdaMuon (arXiv 2507.11005): the orthogonalised sign of the momentum, divided by the root of its own mean square.

    `auto_kappa_p`: convolutions are orthogonalised without taking the sign. The other options are Muon's and Adam's.
    """

    name = "ADAMUON_ADV"
    defaults = {
        **MUON,
        "beta1": 0.95,
        "beta2": 0.95,
        "eps": 1e-8,
        "scaled_eps": False,
        "factored_2nd": False,
        "use_atan2": False,
        "auto_kappa_p": True,
    }

    def moments(self, options: Mapping[str, Any]) -> list[str]:
        return [*super().moments(options), *([] if options["normuon_variant"] else [SECOND])]

    def direction(self, s: StackStep) -> Tensor:
        o = s.options
        m = self.momentum(s)
        u = orthogonalized(m if o["auto_kappa_p"] and s.kernel else torch.sign(m), o, partial(s.noise, SKETCH_STREAM))
        if o["normuon_variant"]:
            return muon_sized(s, even_rows(s, u, o["beta2"]))
        divisor = second_moment(s, u, o["beta2"]).sqrt()
        if not o["use_atan2"]:
            divisor.add_(epsilon(s))
        return muon_sized(s, divided(s, u, divisor))
