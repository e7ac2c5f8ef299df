from modules.module.AdapterLayout import AdapterLayout
from modules.module.factored_svd import singular_values
from modules.module.FileKind import ALPHA, FileKind, PartError, Parts, factor
from modules.module.magnitude import DORA_SCALE, PEFT_MAGNITUDE

import torch
from torch import Tensor

DOWN, UP, MID = "lora_down.weight", "lora_up.weight", "lora_mid.weight"
# peft itself leaves out the last word; transformers, which loads text encoders, finds the vector only with it
PEFT_NAME = f"{PEFT_MAGNITUDE}.weight"
_A_B = {DOWN: "lora_A.weight", UP: "lora_B.weight"}


class LoRAFileKind(FileKind):
    """LoRA and DoRA: down `[r, i(, kh, kw)]`, up `[o, r(, 1, 1)]`, and with a middle kernel down `[r, i, 1, 1]`."""

    name = "LoRA"
    dora_name = "DoRA"
    own = frozenset({DOWN, UP, MID})
    beside = frozenset({ALPHA, DORA_SCALE, PEFT_MAGNITUDE})
    spellings = {
        DOWN: (".lora_A.weight", ".lora.down.weight", "_lora.down.weight", ".lora_linear_layer.down.weight", ".lora_A"),
        UP: (".lora_B.weight", ".lora.up.weight", "_lora.up.weight", ".lora_linear_layer.up.weight", ".lora_B"),
        PEFT_MAGNITUDE: (f".{PEFT_NAME}", ".magnitude"),
    }
    exact = FileKind.exact | {PEFT_NAME}
    peft_modules = ("lora_[AB]", "lora_magnitude_vector")
    peft_parameters = ("lora_magnitude_vector",)
    has_alpha = True
    factors = (DOWN, UP)
    main_parts = (DOWN,)
    adds = True
    resizable = True
    joins = True
    folds_alpha = True
    diffusers_marks = (".lora_A", ".lora_B", ".lora.", "_lora.", ".lora_linear_layer.")
    diffusers = ("", "output")
    output_option = "lora_decompose_output_axis"
    kohya = True
    algorithm = "lora"

    def needed(self, parts: Parts) -> list[str]:
        return [DOWN, UP]

    def rank(self, parts: Parts) -> int | None:
        return parts[DOWN].shape[0]

    def check(self, parts: Parts) -> tuple[int, int]:
        down, up = factor(parts, DOWN), factor(parts, UP)
        rank = down.shape[0]
        if up.shape[1] != rank or up[0, 0].numel() != 1:
            raise PartError(UP, f"has the shape {list(up.shape)}, expected [outputs, {rank}] for the rank of down.")
        if MID not in parts:
            return up.shape[0], down[0].numel()
        mid = parts[MID]
        if mid.dim() != 4 or mid.shape[:2] != (rank, rank):
            raise PartError(MID, f"has the shape {list(mid.shape)}, expected [{rank}, {rank}, kh, kw].")
        if down[0].numel() != down.shape[1]:
            raise PartError(DOWN, f"has the shape {list(down.shape)}, expected [rank, inputs, 1, 1] beside {MID}.")
        return up.shape[0], down.shape[1] * mid[0, 0].numel()

    def single_on_inputs(self, parts: Parts) -> bool:
        return parts[UP].shape[:1] != (1,)

    def on_convolution(self, parts: Parts) -> bool:
        return parts[DOWN].dim() == 4

    def normal(self, parts: Parts) -> dict[str, Tensor]:
        normal = dict(parts)
        if MID in normal:  # down 1 x 1, then mid k x k: their product is a k x k kernel
            down = normal[DOWN].float().flatten(1)
            normal[DOWN] = torch.einsum("rskl,si->rikl", normal.pop(MID).float(), down)
        return normal

    def weight_like(self, parts: Parts) -> Tensor | None:
        return parts[DOWN]

    def written(self, parts: Parts, layout: AdapterLayout) -> dict[str, Tensor]:
        parts = super().written(parts, layout)
        if layout.peft:
            parts = peft_magnitude(fold_alpha(parts))
        names = (_A_B if layout.a_b else {}) | ({PEFT_MAGNITUDE: PEFT_NAME} if layout.peft else {})
        return {names.get(part, part): tensor for part, tensor in parts.items()}

    def unfold_alpha(self, parts: Parts, alpha: Tensor) -> dict[str, Tensor]:
        down = parts[DOWN]
        return dict(parts) | {DOWN: down.float() * (down.shape[0] / alpha.item()), ALPHA: alpha}

    def row_parts(self, parts: Parts) -> list[str]:
        return [UP]

    def rank_factors(self, parts: Parts) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        return (UP,), (DOWN,)

    def singular_values(self, parts: Parts) -> Tensor | None:
        return singular_values(parts[DOWN], parts[UP])

    def up_factor(self, parts: Parts) -> Tensor | None:
        return parts[UP]

    def comfy_remark(self, dora: str) -> str:
        return ""

    def known_to_onetrainer(self, dora: str) -> bool:
        return True


def fold_alpha(parts: Parts) -> dict[str, Tensor]:
    """Parts without alpha, for the same ΔW: alpha/rank is multiplied into the down matrix.

    Down rather than up, because its values are far larger, so that half precision still holds them.
    """
    folded = {name: tensor for name, tensor in parts.items() if name != ALPHA}
    if ALPHA in parts:
        folded[DOWN] = parts[DOWN].float() * (parts[ALPHA].item() / parts[DOWN].shape[0])
    return folded


def peft_magnitude(parts: Parts) -> dict[str, Tensor]:
    """Parts whose scale of a DoRA on outputs, `[o, 1(, 1, 1)]`, has peft's shape: `[o]`, for kernels `[1, o, 1, 1]`."""
    result = dict(parts)
    if DORA_SCALE in parts:
        scale = result.pop(DORA_SCALE)
        result[PEFT_MAGNITUDE] = scale.flatten() if scale.dim() == 2 else scale.reshape(1, -1, 1, 1)
    return result
