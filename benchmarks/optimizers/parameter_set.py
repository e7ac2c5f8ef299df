"""What the optimizers step in the benchmark: the LoRA factors of every linear layer of SDXL's UNet."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusers import UNet2DConditionModel

# unet/config.json of stabilityai/stable-diffusion-xl-base-1.0, without what only matters when it runs
SDXL_UNET = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
# of weights and gradients of a LoRA that has trained for a while
VALUE_SIZE, GRADIENT_SIZE = 2e-2, 1e-3


@dataclass(frozen=True)
class Layer:
    """A linear layer."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class ParameterInfo:
    """What the engine wants to know of a parameter; role is a name of `scaled_optim.roles.ROLES`."""

    role: str
    name: str
    pair: str


@functools.cache
def sdxl_layers() -> tuple[Layer, ...]:
    """Every linear layer of SDXL's UNet, in its own order; nothing of its 2.6 billion weights is allocated."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL_UNET)
    return tuple(
        Layer(name, module.in_features, module.out_features)
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear)
    )


def scaled_down(layers: Sequence[Layer], every: int = 25, divisor: int = 20) -> list[Layer]:
    """One layer in so many, with its features divided: a mixture of the same shapes for tests."""
    return [Layer(layer.name, layer.in_features // divisor, layer.out_features // divisor) for layer in layers[::every]]


def lora_shapes(layers: Sequence[Layer], rank: int) -> list[tuple[ParameterInfo, tuple[int, int]]]:
    """A `[rank, in]` and B `[out, rank]` of every layer."""
    return [
        factor
        for layer in layers
        for names in [(f"{layer.name}.lora_down.weight", f"{layer.name}.lora_up.weight")]
        for factor in (
            (ParameterInfo("LORA_DOWN", names[0], names[1]), (rank, layer.in_features)),
            (ParameterInfo("LORA_UP", names[1], names[0]), (layer.out_features, rank)),
        )
    ]


class ParameterSet:
    """Start values and gradients, the same ones in every run, of which each optimizer gets parameters of its own.

    The parameters of all optimizers share the tensors of their gradients, as only one steps at a time: call `refill`
    before each step, because some optimizers overwrite gradients.

    Attributes:
        infos: what each parameter is.
        elements: of all parameters together.
    """

    def __init__(
        self, layers: Sequence[Layer], rank: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        factors = lora_shapes(layers, rank)
        self.infos = [info for info, _ in factors]
        shapes = [shape for _, shape in factors]
        self.elements = sum(rows * cols for rows, cols in shapes)
        generator = torch.Generator().manual_seed(0)

        def drawn(size: float) -> list[Tensor]:
            flat = torch.randn(self.elements, generator=generator).mul_(size).to(device, dtype)
            parts = flat.split([rows * cols for rows, cols in shapes])
            return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

        self._values, self._gradients = drawn(VALUE_SIZE), drawn(GRADIENT_SIZE)
        self._shared = [gradient.clone() for gradient in self._gradients]

    def parameters(self, orthonormal: bool = False) -> list[nn.Parameter]:
        """Fresh parameters at the start values, each with `parameter_info` and a gradient.

        Args:
            orthonormal: makes the columns of the up factors orthonormal.
        """
        parameters = []
        for info, value, gradient in zip(self.infos, self._values, self._shared, strict=True):
            if orthonormal and info.role == "LORA_UP":
                value = torch.linalg.qr(value.float()).Q.to(value.dtype).contiguous()
            parameter = nn.Parameter(value.clone())
            parameter.parameter_info = info
            parameter.grad = gradient
            parameters.append(parameter)
        return parameters

    def refill(self) -> None:
        """Gives all parameters their gradients again."""
        for shared, gradient in zip(self._shared, self._gradients, strict=True):
            shared.copy_(gradient)
