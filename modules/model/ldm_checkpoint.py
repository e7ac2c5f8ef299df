"""What a single file in the original (LDM) layout holds of a Stable Diffusion model: the inverse of `single_file`."""

from collections.abc import Collection, Mapping

from modules.model.ldm_keys import (
    CLIP_PREFIX,
    OPEN_CLIP_PREFIX,
    TEXT_PREFIXES,
    Place,
    clip_name,
    open_clip_place,
    unet_name,
    vae_name,
)
from modules.model.unet_keys import native_blocks
from modules.util.CheckpointTensor import CheckpointTensor, checkpoint_tensors

from torch import nn


def ldm_checkpoint(
    components: Mapping[str, nn.Module], generation: int, open_clip: Collection[str]
) -> list[CheckpointTensor]:
    """The tensors of a checkpoint with UNet, autoencoder and text encoders.

    Args:
        components: by name, may be on the meta device.
        generation: 0 for SD 1.x and 2.x, 1 for SDXL, whose text encoders stand elsewhere.
        open_clip: the text encoders that such files hold in OpenCLIP's layout.

    Raises:
        ValueError: a component has tensors for which such files have no name.
    """
    found: list[CheckpointTensor] = []
    for component, module in components.items():
        names = module.state_dict()
        if component == "unet":
            blocks = native_blocks(module.config)
            found += checkpoint_tensors(component, names, lambda name, b=blocks: Place(unet_name(name, b)))
        elif component == "vae":
            found += vae_tensors(component, module)
        else:
            prefix = TEXT_PREFIXES[component][-1] if generation else TEXT_PREFIXES[component][0]
            if component in open_clip:
                start = prefix + OPEN_CLIP_PREFIX
                found += checkpoint_tensors(component, names, lambda name, s=start: open_clip_place(name, s))
            else:
                start = prefix + CLIP_PREFIX
                found += checkpoint_tensors(component, names, lambda name, s=start: Place(clip_name(name, s)))
    return found


def vae_tensors(component: str, module: nn.Module) -> list[CheckpointTensor]:
    """Those of an `AutoencoderKL`, whose attention has 1 × 1 convolutions there, and matrices here."""
    state = module.state_dict()

    def ones(name: str) -> int:
        return 2 if ".attentions." in name and state[name].dim() == 2 else 0

    return checkpoint_tensors(component, state, lambda name: Place(vae_name(name, module.config)), ones)
