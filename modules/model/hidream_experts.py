"""What diffusers' transformer of HiDream must do otherwise than it does by itself, so that it can be trained.

Axes: `b` images, `l` tokens, `d` channels, `t` tokens of all images, `k` experts that read each token.
"""

from functools import partial

from modules.model.PatchedLatents import token_places

import torch
from torch import Tensor, nn

from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU


def make_trainable(transformer: nn.Module) -> None:
    """Makes a transformer compute the same in training and drawing, with gradients, for images of any shape.

    Outside of training mode diffusers cuts gradients off at the experts; in it the output is no image. Of images that
    are not square it adds tokens up to the most that there may be, which attention sees: of 512 × 768 pixels three of
    five. ComfyUI and OneTrainer add none, and nor is it done here.

    Args:
        transformer: a `HiDreamImageTransformer2DModel`; is changed.
    """
    for module in transformer.modules():
        if isinstance(module, MOEFeedForwardSwiGLU):
            module.forward = partial(mix_experts, module)
    to_image = transformer.unpatchify
    transformer.patchify = partial(cut_patches, transformer.config.patch_size)
    transformer.unpatchify = lambda tokens, sizes, is_training: to_image(tokens, sizes, False)


def mix_experts(layer: MOEFeedForwardSwiGLU, hidden: Tensor) -> Tensor:
    """Each token's sum over its experts, times what the gate gives them, and the expert that all tokens share.

    Tokens are sorted by expert, so that a device is waited for once. An expert without tokens is called all the same:
    its gradients are zeros, and not missing.

    Args:
        layer: with `experts`, `shared_experts` and `gate`.
        hidden: `[b, l, d]`.
    """
    tokens = hidden.flatten(0, 1)
    chosen, weights, _ = layer.gate(hidden)
    k, places = chosen.shape[1], torch.arange(len(layer.experts), device=hidden.device)
    order = chosen.flatten().argsort(stable=True)
    counts = (chosen.flatten()[:, None] == places).sum(dim=0).tolist()
    if sum(counts) != len(order):
        # an estimate's tensors have no numbers: as many for each
        counts = [len(order) * (i + 1) // len(counts) - len(order) * i // len(counts) for i in range(len(counts))]
    rows = tokens[order // k].split(counts)
    # one that nobody chose reads a token of which nothing is kept: adapters and kernels take no empty tensors
    outputs = torch.cat([
        expert(own) if len(own) else expert(tokens[:1])[:0] for expert, own in zip(layer.experts, rows, strict=True)
    ])  # fmt: skip
    # back in the order of tokens, [t, k, d]
    outputs = outputs[order.argsort()].unflatten(0, (-1, k))
    mixed = (outputs * weights[..., None]).sum(dim=1)
    return mixed.to(hidden.dtype).view_as(hidden) + layer.shared_experts(hidden)


def cut_patches(side: int, latents: Tensor) -> tuple[Tensor, None, list[tuple[int, int]], Tensor]:
    """Latents `[b, c, h, w]` -> tokens `[b, l, side · side · c]`, no mask, rows and columns of each, and their places.

    Args:
        side: of a patch.
        latents: their height and width are multiples of it.
    """
    rows, columns = latents.shape[2] // side, latents.shape[3] // side
    patches = latents.unflatten(3, (columns, side)).unflatten(2, (rows, side))
    tokens = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    places = token_places(rows, columns, latents.device)
    return tokens, None, [(rows, columns)] * len(latents), places.expand(len(latents), -1, -1)
