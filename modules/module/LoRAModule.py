import math
from collections.abc import Collection, Mapping
from typing import Any

from modules.module.AdapterModule import AdaptedLayer, AdapterModule
from modules.module.dense_weight import weight_shape
from modules.module.FileKind import ALPHA
from modules.module.LoRAFileKind import DOWN, MID, UP, LoRAFileKind
from modules.module.low_rank import Geometry, low_rank_conv2d, low_rank_linear
from modules.module.part_checks import check_names, check_rank, fitted, for_layer, number, rank_of
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.LoRAInit import LoRAInit
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.enum.PeftType import PeftType
from modules.util.keyed_random import layer_generator
from scaled_optim.lora_start import draw_start_values

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# the note of a layer that gets fewer ranks than the config says
FEWER_RANKS = "fewer ranks"


class LoRAModule(AdapterModule):
    """LoRA: W' = W + (alpha/rank)·up·down (arXiv 2106.09685).

    Linear: down `[r, i]`, up `[o, r]`. Conv2d: a convolution of the layer's own kernel, stride, padding and dilation
    to `r` channels, then a 1 x 1 convolution; down `[r, i/groups, kh, kw]`, up `[o, r, 1, 1]`. With groups > 1,
    ΔW = up·down is formed and applied as the layer applies W, which is right for every format but not fast.

    One factor starts at zero, see `LoRAInit`. The start values depend on seed, component and layer name only.

    Args:
        layer: the frozen layer.
        component: the layer's, for names.
        layer_name: module path inside the component.
        rank: at least 1; more than the layer's smaller side is allowed, and noted. ORTHONORMAL has at most as many
            columns as the layer has outputs: there it becomes that number, and alpha shrinks likewise, both noted.
        alpha: more than 0; the term is scaled by alpha/rank.
        dropout: in [0, 1), share of the adapter's inputs that are zeroed while training.
        dtype: of the trained tensors. The arithmetic has the dtype of the layer's.
        seed: of the run.
        init: how the start values are drawn.
        init_scale: more than 0, multiplies them.
    """

    file_kinds = (LoRAFileKind(),)
    size_option = "lora_rank"
    part_names = {DOWN: "down", UP: "up", ALPHA: "alpha"}
    strength_parts = (UP,)

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
        init: LoRAInit = LoRAInit.KAIMING,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__(layer, component, layer_name)
        if rank < 1 or not 0 <= dropout < 1:
            raise ValueError(f"expected rank >= 1 and 0 <= dropout < 1, found {rank} and {dropout}")
        self.dropout = dropout
        self._linear = isinstance(layer, nn.Linear)
        out, *inner = weight_shape(layer)  # [o, i] or [o, i/groups, kh, kw]
        side = min(out, math.prod(inner))
        if init == LoRAInit.ORTHONORMAL and rank > out:
            self.notes[FEWER_RANKS] = (
                f"{self.full_name}: rank {rank} → {out}, its outputs, as lora_init ORTHONORMAL allows no more"
            )
            # alpha/rank stays, so that the learning rate means the same
            rank, alpha = out, alpha * out / rank
        elif rank > side:
            self.notes["ranks"] = f"{self.full_name}: rank {rank} is more than its smaller side {side}"
        self.rank = rank
        down, up = torch.zeros(rank, *inner), torch.zeros(out, rank, *(1 for _ in inner[1:]))
        device = layer.weight.device
        if device.type != "meta":
            draw_start_values(down, up, init, layer_generator(seed, self.full_name))
        self.down = nn.Parameter((init_scale * down).to(device=device, dtype=dtype))
        self.up = nn.Parameter((init_scale * up).to(device=device, dtype=dtype))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.scale = self._scale()
        self.describe(self.down, ParameterRole.LORA_DOWN, DOWN, pair=UP)
        self.describe(self.up, ParameterRole.LORA_UP, UP, pair=DOWN)

    @classmethod
    def own_arguments(cls, layer: AdaptedLayer, config: TrainConfig, seed: int) -> dict[str, Any]:
        start = {"seed": seed, "init": config.lora_init, "init_scale": config.lora_init_scale}
        return {"rank": config.lora_rank, "alpha": config.lora_alpha, **start}

    @classmethod
    def recognizes(cls, names: Collection[str]) -> bool:
        return DOWN in names and UP in names

    @classmethod
    def options_of(cls, parts: Mapping[str, Tensor], layer: AdaptedLayer) -> dict[str, Any]:
        rank = rank_of(parts, MID if MID in parts else DOWN)
        alpha = number(parts, ALPHA, rank)
        return {"peft_type": PeftType.LORA, "lora_decompose": False, "lora_rank": rank, "lora_alpha": alpha}

    def forward(self, x: Tensor) -> Tensor:
        return self._low_rank_forward(x)

    def _low_rank_forward(self, x: Tensor, factors: Tensor | None = None, merge: bool = True) -> Tensor:
        """The layer and the adapter's term on x⊙factors; `factors` and `merge` as in `low_rank_linear`."""
        layer = self.layer
        if not self._plain or (self.dropout and self.training):
            return self._general_forward(x, factors)
        # straight from the dictionaries: `nn.Module`'s attribute lookup is slow, and this runs once per layer and step
        frozen, trained = layer._parameters, self._parameters
        weight, bias, down, up = frozen["weight"], frozen["bias"], trained["down"], trained["up"]
        dtype = self.compute_dtype(x)
        if x.dtype != dtype or weight.dtype != dtype:  # autocast
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        if down.dtype != dtype:
            down, up = down.to(dtype), up.to(dtype)
        if self._linear:
            return low_rank_linear(x, weight, bias, down, up, self.scale, factors, merge)
        if layer.groups > 1:
            return self._general_forward(x, factors)
        x, geometry = padded(x, layer)
        return low_rank_conv2d(x, weight, bias, down, up, self.scale, geometry, factors, merge)

    def _general_forward(self, x: Tensor, factors: Tensor | None = None) -> Tensor:
        """Any layer, any option: the layer's own forward plus the adapter's term."""
        if factors is not None:
            x = (x * (factors if self._linear else factors.view(-1, 1, 1))).to(x.dtype)
        y = self._original_forward(x)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        x, down, up = x.to(y.dtype), self.down.to(y.dtype), self.up.to(y.dtype)
        layer = self.layer
        if self._linear:
            term = F.linear(F.linear(x, down), up)
        else:
            x, geometry = padded(x, layer)
            if layer.groups > 1:
                kernel = torch.mm(up.flatten(1), down.flatten(1)).view_as(layer.weight)
                term = F.conv2d(x, kernel, None, *geometry, groups=layer.groups)
            else:
                term = F.conv2d(F.conv2d(x, down, None, *geometry), up)
        return torch.add(y, term, alpha=self.scale)

    def delta_weight(self) -> Tensor:
        product = torch.mm(self.up.float().flatten(1), self.down.float().flatten(1))
        return (self.scale * product).view(weight_shape(self.layer))

    @torch.no_grad()
    def load_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Takes over down, up and alpha; a middle kernel is multiplied into down; no alpha means scale 1.

        The file's alpha replaces the configured one, so that nothing changes about what was trained.
        """
        check_names(self, parts, (DOWN, UP), (DOWN, UP, MID, ALPHA), "LoRA")
        normal = self.file_kinds[0].normal(parts)
        down, up = normal[DOWN], normal[UP]
        check_rank(self, down, self.rank, "lora_rank")
        with for_layer(self):
            alpha = number(parts, ALPHA, self.rank)
        self.down.copy_(fitted(self, down, self.down, DOWN))
        self.up.copy_(fitted(self, up, self.up, UP))
        self.alpha.fill_(alpha)
        self.scale = self._scale()

    def _scale(self) -> float:
        """From the float32 buffer, so that a resumed adapter computes with the very same number."""
        return self.alpha.item() / self.rank


def without_extra_ranks(parts: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The parts of an adapter with at most as many ranks as the layer has outputs, for the same ΔW.

    With up = Q·R, Q square and orthogonal: up ← Q, down ← R·down. alpha/rank stays what it was.

    Args:
        parts: as read from a file.

    Returns:
        Float32 factors; the parts themselves if they are no LoRA, or have no more ranks than outputs.
    """
    if DOWN not in parts or UP not in parts or MID in parts or len(parts[UP]) >= len(parts[DOWN]):
        return parts
    down, up = parts[DOWN], parts[UP]
    outputs, rank = len(up), len(down)
    q, r = torch.linalg.qr(up.flatten(1).double())
    factors = {
        UP: q.float().view(outputs, outputs, *up.shape[2:]),
        DOWN: (r @ down.flatten(1).double()).float().view(outputs, *down.shape[1:]),
    }
    return {**parts, **factors, ALPHA: torch.tensor(number(parts, ALPHA, rank) * outputs / rank)}


def padded(x: Tensor, layer: nn.Conv2d) -> tuple[Tensor, Geometry]:
    """The input and the geometry with which plain convolutions reproduce the layer's kind of padding."""
    padding = layer.padding
    if layer.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        padding = (0, 0)
    return x, (layer.stride, padding, layer.dilation)
