"""What quantized formats of frozen weights save, cost and lose."""

import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.measuring import ROOT, environment
from modules.model.LayerOffload import module_bytes
from modules.model.QuantizedLinear import WEIGHT_CODECS, QuantizedLinear
from modules.model.weight_formats import place_component
from modules.util.config.TrainConfig import TrainConfig

import torch
from torch import nn

from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, ModelMixin, UNet2DConditionModel

# a denoiser's name -> class, component, description in `resources/`
DENOISERS: dict[str, tuple[type[ModelMixin], str, str]] = {
    "SD 1.5": (UNet2DConditionModel, "unet", "stable_diffusion/sd1/unet"),
    "SDXL": (UNet2DConditionModel, "unet", "stable_diffusion_xl/unet"),
    "Flux.1 dev": (FluxTransformer2DModel, "transformer", "flux_1/dev/transformer"),
    "Flux.2 Klein 4B": (Flux2Transformer2DModel, "transformer", "flux_2/klein_4b/transformer"),
    "Flux.2 Klein 9B": (Flux2Transformer2DModel, "transformer", "flux_2/klein_9b/transformer"),
    "Flux.2 dev": (Flux2Transformer2DModel, "transformer", "flux_2/dev/transformer"),
}
META = torch.device("meta")
WARM_UP = 3


def compare_formats(
    features: int = 1280, tokens: int = 1024, repeats: int = 15, denoisers: Sequence[str] = tuple(DENOISERS)
) -> dict[str, Any]:
    """Bytes of full-size denoisers, and of one layer on this CPU: time of forward and backward, and error.

    Args:
        features: inputs and outputs of the layer.
        tokens: rows of its input.
        repeats: measured steps of each format, which take turns; the first ones are left out.
        denoisers: of `DENOISERS`.
    """
    torch.manual_seed(0)
    layer = nn.Linear(features, features).requires_grad_(False)
    # trained weights are nearer to a normal distribution than fresh ones
    layer.weight.normal_(std=0.02)
    layers = {"FLOAT_32": layer} | {str(kind): QuantizedLinear(layer, kind) for kind in WEIGHT_CODECS}
    x = torch.randn(tokens, features, requires_grad=True)
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(WARM_UP + repeats):
        for name, own in layers.items():
            # processor time: other programs may be running
            start = time.process_time()
            own(x).sum().backward()
            seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(values[WARM_UP:]) for name, values in seconds.items()}
    formats = {
        name: {"time": medians[name] / medians["FLOAT_32"],
               "error": float((own.dense() - layer.weight).norm() / layer.weight.norm())}
        for name, own in layers.items() if isinstance(own, QuantizedLinear)
    }  # fmt: skip
    return {
        "environment": environment(torch.device("cpu"), ("torch", "diffusers")),
        "layer": formats,
        "denoiser bytes": {name: _bytes(*DENOISERS[name]) for name in denoisers},
    }


def _bytes(kind: type[ModelMixin], component: str, place: str) -> dict[str, int]:
    config = json.loads((ROOT / "resources" / place / "config.json").read_text(encoding="utf-8"))
    found = {}
    for data_type in ("BFLOAT_16", *WEIGHT_CODECS):
        options = TrainConfig.from_dict({"train_dtype": "BFLOAT_16", component: {"weight_dtype": data_type}})
        with META:
            module = kind.from_config(config)
        found[str(data_type)] = module_bytes(place_component(module, component, options, META))
    return found
