from collections.abc import Collection, Mapping
from typing import Any

from modules.module.AdapterModule import AdaptedLayer
from modules.module.DeltaModule import DeltaModule
from modules.module.dense_weight import weight_shape
from modules.module.FileKind import ALPHA
from modules.module.LoHaFileKind import CORES, FACTORS, LoHaFileKind
from modules.module.part_checks import check_names, check_rank, fitted, for_layer, number, rank_of
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.enum.PeftType import PeftType
from modules.util.keyed_random import layer_generator

import torch
from torch import Tensor

# standard deviations of the start values, those of LyCORIS
START = {"hada_w1_a": 0.1, "hada_w1_b": 1.0, "hada_w2_a": 0.0, "hada_w2_b": 1.0}


class LoHaModule(DeltaModule):
    """LoHa: W' = W + (alpha/rank)·(w1_a·w1_b)⊙(w2_a·w2_b), of a rank up to rank² (arXiv 2108.06098, as in LyCORIS).

    w*_a are `[o, r]`, w*_b `[r, i]` or, for convolutions, `[r, i/groups·kh·kw]`. w2_a starts at zero, the others
    normal. The start values depend on seed, component and layer name only.

    Args:
        layer: the frozen layer.
        component: the layer's, for names.
        layer_name: module path inside the component.
        rank: at least 1.
        alpha: more than 0; ΔW is scaled by alpha/rank.
        dropout: in [0, 1), share of the adapter's inputs that are zeroed while training.
        dtype: of the trained tensors.
        seed: of the run.
        init_scale: more than 0, multiplies the start values.
    """

    file_kinds = (LoHaFileKind(),)
    size_option = "lora_rank"
    part_names = {name: name.removeprefix("hada_") for name in FACTORS} | {ALPHA: ALPHA}
    strength_parts = ("hada_w2_a",)

    def __init__(
        self,
        layer: AdaptedLayer,
        component: str,
        layer_name: str,
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__(layer, component, layer_name, dropout)
        if rank < 1:
            raise ValueError(f"expected rank >= 1, found {rank}")
        self.rank = rank
        out, *inner = weight_shape(layer)
        columns = torch.Size(inner).numel()
        generator = layer_generator(seed, self.full_name)
        for name in FACTORS:
            is_up = name.endswith("_a")
            values = torch.zeros((out, rank) if is_up else (rank, columns))
            if START[name]:
                values.normal_(std=START[name], generator=generator).mul_(init_scale)
            role = ParameterRole.LORA_UP if is_up else ParameterRole.LORA_DOWN
            self.add(name, self.part_names[name], values.to(dtype), role)
        self.register_buffer(ALPHA, torch.tensor(float(alpha)))
        self.scale = self.alpha.item() / rank

    @classmethod
    def own_arguments(cls, layer: AdaptedLayer, config: TrainConfig, seed: int) -> dict[str, Any]:
        start = {"seed": seed, "init_scale": config.lora_init_scale}
        return {"rank": config.lora_rank, "alpha": config.lora_alpha, **start}

    @classmethod
    def recognizes(cls, names: Collection[str]) -> bool:
        return any(name in names for name in FACTORS)

    @classmethod
    def options_of(cls, parts: Mapping[str, Tensor], layer: AdaptedLayer) -> dict[str, Any]:
        rank = rank_of(parts, "hada_w1_b")
        return {"peft_type": PeftType.LOHA, "lora_rank": rank, "lora_alpha": number(parts, ALPHA, rank)}

    def factors(self) -> tuple[Tensor, ...]:
        return self.w1_a, self.w1_b, self.w2_a, self.w2_b

    def build(self, *factors: Tensor) -> Tensor:
        w1_a, w1_b, w2_a, w2_b = (factor.float() for factor in factors)
        product = torch.mm(w1_a, w1_b) * torch.mm(self.scale * w2_a, w2_b)
        return product.view(weight_shape(self.layer))

    @torch.no_grad()
    def load_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Takes over the factors and alpha; without alpha the scale is 1.

        Convolutions may have four axes (OneTrainer) or Tucker cores `hada_t*` `[r, r, kh, kw]` with w*_a `[r, o]` and
        w*_b `[r, i]` (LyCORIS); a core is multiplied into w*_b, for the same ΔW.
        """
        check_names(self, parts, FACTORS, (*FACTORS, *CORES, ALPHA), "LoHa")
        own = {name: parts[name] for name in FACTORS}
        for core, left, right in zip(CORES, FACTORS[::2], FACTORS[1::2], strict=True):
            check_rank(self, own[right], self.rank, "lora_rank")
            if core in parts:
                own[left], own[right] = self._without_core(parts, core, left, right)
        for name, tensor in own.items():
            target = getattr(self, self.part_names[name])
            target.copy_(fitted(self, tensor.flatten(1) if tensor.dim() > 2 else tensor, target, name))
        with for_layer(self):
            self.alpha.fill_(number(parts, ALPHA, self.rank))
        self.scale = self.alpha.item() / self.rank

    def _without_core(self, parts: Mapping[str, Tensor], core: str, left: str, right: str) -> tuple[Tensor, Tensor]:
        """Of Σ core[p, q, h, w]·left[p, o]·right[q, i]: leftᵀ and (Σ core[p, q, h, w]·right[q, i])[p, i·h·w]."""
        t, a, b = parts[core].float(), parts[left].float(), parts[right].float()
        if t.dim() != 4 or a.dim() < 2 or t.shape[:2] != (a.shape[0], b.shape[0]):
            raise self.part_error(
                f"{core} has the shape {list(t.shape)}, expected [{len(a)}, {len(b)}, height, width]. Save it again."
            )
        return a.flatten(1).t(), torch.einsum("pqhw,qi->pihw", t, b.flatten(1)).flatten(1)
