"""Single files of Stable Diffusion 3 and 3.5: what they hold, and which of the two they are of."""

from collections.abc import Mapping
from pathlib import Path

from modules.model.ldm_checkpoint import vae_tensors
from modules.model.ldm_keys import UNET_PREFIX
from modules.model.native_file import CLIP_PREFIXES, T5_PREFIX, NativeTensor
from modules.model.sd3_keys import sd3_layout
from modules.model.unet_keys import clip_file_path
from modules.model.weights_file import WeightsFile
from modules.util.CheckpointTensor import CheckpointTensor, checkpoint_tensors
from modules.util.UserError import UserError

from torch import nn

# text encoder -> what stands before its names in a whole checkpoint
_TEXTS = dict(
    zip(("text_encoder", "text_encoder_2", "text_encoder_3"), (*CLIP_PREFIXES.values(), T5_PREFIX), strict=True)
)


def sd3_checkpoint(components: Mapping[str, nn.Module]) -> list[CheckpointTensor]:
    """The tensors of a file.

    Args:
        components: by name, the transformer first, may be on the meta device. The transformer alone has no prefix.

    Raises:
        ValueError: a component has tensors for which such files have no name.
    """
    found: list[CheckpointTensor] = []
    for component, module in components.items():
        names = module.state_dict()
        if component == "transformer":
            start, layout = UNET_PREFIX if len(components) > 1 else "", sd3_layout(module.config.num_layers)

            def place(name: str, start: str = start, layout=layout) -> NativeTensor:
                own = layout.tensor(name)
                return own._replace(name=start + own.name)

            found += checkpoint_tensors(component, names, place)
        elif component == "vae":
            found += vae_tensors(component, module)
        else:
            # files have a level that transformers 5 dropped from CLIP
            path_of = str if component == "text_encoder_3" else clip_file_path
            found += checkpoint_tensors(
                component, names, lambda name, of=path_of, c=component: NativeTensor(_TEXTS[c] + of(name))
            )
    return found


def check_generation(path: Path, transformer: nn.Module) -> None:
    """UserError if a file is of 3.5 and the base model of 3, or the other way round."""
    names = WeightsFile(path).shapes
    file = any(".ln_q." in name or ".norm_q." in name for name in names)
    base = transformer.config.qk_norm is not None
    if names and file != base:
        kinds = {True: "3.5, which has norms of queries and keys", False: "3, which has no norms of queries and keys"}
        raise UserError(
            f"transformer.model_name: {path} is of Stable Diffusion {kinds[file]}, but the base model is "
            f"{kinds[base]}. Name a folder of Stable Diffusion {kinds[file].split(',')[0]} as base_model_name."
        )
