import math
from collections.abc import Collection, Mapping
from typing import Any

from modules.module.AdapterModule import AdaptedLayer, AdapterModule, layer_generator, trained_dtype
from modules.module.low_rank import Geometry, low_rank_conv2d, low_rank_linear
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.enum.PeftType import PeftType
from modules.util.ParameterInfo import ParameterInfo, set_parameter_info

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DOWN, UP, MID, ALPHA = "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha"


class LoRAModule(AdapterModule):
    """LoRA: W' = W + (alpha/rank)·up·down (arXiv 2106.09685).

    Linear: down `[r, i]`, up `[o, r]`. Conv2d: a convolution of the layer's own kernel, stride, padding and dilation
    to `r` channels, then a 1 x 1 convolution; down `[r, i/groups, kh, kw]`, up `[o, r, 1, 1]`. With groups > 1,
    ΔW = up·down is formed and applied as the layer applies W, which is right for every format but not fast.

    down starts uniform in ±1/√fan_in (Kaiming with a = √5, as kohya and OneTrainer do), up at zero. The start values
    depend on seed, component and layer name only.

    Args:
        layer: the frozen layer.
        component: model part, for names.
        layer_name: module path inside the component.
        rank: at least 1; more than the layer's smaller side is allowed, and noted.
        alpha: more than 0; the term is scaled by alpha/rank.
        dropout: in [0, 1), share of the adapter's inputs that are zeroed while training.
        dtype: of the trained tensors. The arithmetic has the dtype of the layer's.
        seed: of the run.
    """

    part_names = {DOWN: "down", UP: "up", ALPHA: "alpha"}

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
    ) -> None:
        super().__init__(layer, component, layer_name)
        if rank < 1 or not 0 <= dropout < 1:
            raise ValueError(f"expected rank >= 1 and 0 <= dropout < 1, found {rank} and {dropout}")
        self.rank = rank
        self.dropout = dropout
        self._linear = isinstance(layer, nn.Linear)
        out, *inner = layer.weight.shape  # [o, i] or [o, i/groups, kh, kw]
        down = torch.empty(rank, *inner)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=layer_generator(seed, self.full_name))
        device = layer.weight.device
        if device.type == "meta":
            down = down.to(device)
        self.down = nn.Parameter(down.to(device=device, dtype=dtype))
        self.up = nn.Parameter(torch.zeros(out, rank, *(1 for _ in inner[1:]), device=device, dtype=dtype))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.scale = self._scale()
        self._describe()
        side = min(out, math.prod(inner))
        if rank > side:
            self.notes.append(f"{self.full_name}: rank {rank} is more than its smaller side {side}")

    @classmethod
    def create(
        cls, layer: AdaptedLayer, component: str, layer_name: str, config: TrainConfig, seed: int
    ) -> "LoRAModule":
        return cls(
            layer,
            component,
            layer_name,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            dropout=config.dropout_probability,
            dtype=trained_dtype(config),
            seed=seed,
        )

    @classmethod
    def recognizes(cls, names: Collection[str]) -> bool:
        return DOWN in names and UP in names

    @classmethod
    def options_of(cls, parts: Mapping[str, Tensor], layer: AdaptedLayer) -> dict[str, Any]:
        rank = parts[DOWN].shape[0]
        alpha = parts[ALPHA].item() if ALPHA in parts else rank
        return {"peft_type": PeftType.LORA, "lora_decompose": False, "lora_rank": rank, "lora_alpha": alpha}

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        if not self._plain or (self.dropout and self.training):
            return self._general_forward(x)
        # straight from the dictionaries: `nn.Module`'s attribute lookup is slow, and this runs once per layer and step
        frozen, trained = layer._parameters, self._parameters
        weight, bias, down, up = frozen["weight"], frozen["bias"], trained["down"], trained["up"]
        dtype = self.compute_dtype(x)
        if x.dtype != dtype or weight.dtype != dtype:  # autocast
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        if down.dtype != dtype:
            down, up = down.to(dtype), up.to(dtype)
        if self._linear:
            return low_rank_linear(x, weight, bias, down, up, self.scale)
        if layer.groups > 1:
            return self._general_forward(x)
        x, geometry = padded(x, layer)
        return low_rank_conv2d(x, weight, bias, down, up, self.scale, geometry)

    def _general_forward(self, x: Tensor) -> Tensor:
        """Any layer, any option: the layer's own forward plus the adapter's term."""
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
        return (self.scale * product).view(self.layer.weight.shape)

    @torch.no_grad()
    def load_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Takes over down, up and alpha; a middle kernel is multiplied into down; no alpha means scale 1.

        The file's alpha replaces the configured one, so that nothing changes about what was trained.
        """
        foreign = sorted(parts.keys() - {DOWN, UP, MID, ALPHA})
        if foreign:
            raise self.part_error(f"it holds {', '.join(foreign)}, which is not LoRA. Choose the file's adapter type.")
        for part in (DOWN, UP):
            if part not in parts:
                raise self.part_error(f"{part} is missing. The file is incomplete; save it again.")
        down, up = parts[DOWN], parts[UP]
        if MID in parts:  # down 1 x 1, then mid k x k: their product is a k x k kernel
            down = torch.einsum("rskl,si->rikl", parts[MID].float(), down.float().flatten(1))
        if down.shape[0] != self.rank:
            raise self.part_error(
                f"its rank is {down.shape[0]}, expected {self.rank}. Set lora_rank to {down.shape[0]}."
            )
        alpha = float(parts[ALPHA].item()) if ALPHA in parts else float(self.rank)
        self.down.copy_(self._fitted(down, self.down, DOWN))
        self.up.copy_(self._fitted(up, self.up, UP))
        self.alpha.fill_(alpha)
        self.scale = self._scale()

    def _scale(self) -> float:
        """From the float32 buffer, so that a resumed adapter computes with the very same number."""
        return self.alpha.item() / self.rank

    def _fitted(self, tensor: Tensor, like: Tensor, part: str) -> Tensor:
        """`tensor` in the shape of `like`; trailing ones may come and go, as 1 x 1 convolutions are linear."""
        if _without_trailing_ones(tensor.shape) != _without_trailing_ones(like.shape):
            raise self.part_error(
                f"{part} has the shape {list(tensor.shape)}, expected {list(like.shape)}. "
                "It was made for another base model."
            )
        return tensor.reshape(like.shape)

    def _describe(self) -> None:
        for part, parameter, role in (
            (DOWN, self.down, ParameterRole.LORA_DOWN),
            (UP, self.up, ParameterRole.LORA_UP),
        ):
            partner = UP if part == DOWN else DOWN
            set_parameter_info(
                parameter,
                ParameterInfo(
                    role,
                    self.component,
                    self.layer_name,
                    f"{self.full_name}.{part}",
                    f"{self.full_name}.{partner}",
                ),
            )


def padded(x: Tensor, layer: nn.Conv2d) -> tuple[Tensor, Geometry]:
    """The input and the geometry with which plain convolutions reproduce the layer's kind of padding."""
    padding = layer.padding
    if layer.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        padding = (0, 0)
    return x, (layer.stride, padding, layer.dilation)


def _without_trailing_ones(shape: torch.Size) -> tuple[int, ...]:
    sizes = list(shape)
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)
