"""Adapters for tests: kinds of a few parameters, and numbers as after a training."""

from modules.module.AdapterSet import AdapterSet

import torch

# name -> options
SMALL_KINDS = {
    "lora": {},
    "dora": {"lora_decompose": True},
    "dora on outputs": {"lora_decompose": True, "lora_decompose_output_axis": True},
    "loha": {"peft_type": "LOHA"},
    "lokr": {"peft_type": "LOKR", "lokr_dim": 1},
    "oft": {"peft_type": "OFT_2", "oft_block_size": 4},
    "oft on outputs": {"peft_type": "OFT_2", "oft_block_size": 4, "oft_side": "OUTPUT"},
    "dora-oft": {"peft_type": "OFT_2", "oft_block_size": 4, "lora_decompose": True},
}


def disturb(adapters: AdapterSet, seed: int, amount: float = 0.1) -> AdapterSet:
    """The adapters themselves, as after a training: with noise of `amount` on every parameter.

    It is small enough for rotations to stay moderate. Magnitudes are multiplied, so that they stay positive.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapters.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(1 + 0.1 * noise) if name.endswith("magnitude") else parameter.add_(amount * noise)
    return adapters
