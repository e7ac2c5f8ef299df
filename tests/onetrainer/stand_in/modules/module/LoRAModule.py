import math

from modules.module.FusedModule import FusedModuleGroup
from modules.module.oft_utils import OFTRotationModule
from modules.util.enum.ModelType import PeftType

import torch
from torch import nn
from torch.nn import functional as F


class PeftBase(nn.Module):
    def __init__(self, prefix, orig_module):
        super().__init__()
        self.prefix = prefix + "."
        # in a list, so that it is no child of this
        self.holder = [orig_module]
        self.layer = F.linear
        if isinstance(orig_module, nn.Conv2d):
            self.layer = lambda x, weight: F.conv2d(x, weight, padding=orig_module.padding)

    @property
    def orig_module(self):
        return self.holder[0]

    def hook_to_module(self):
        self.before, self.orig_module.forward = self.orig_module.forward, self.forward

    def load_state_dict(self, state_dict, strict=True):
        own = {key[len(self.prefix) :]: value for key, value in state_dict.items() if key.startswith(self.prefix)}
        return super().load_state_dict(own, strict)

    def matrices(self, rank):
        """A pair of factors for the layer, the one on its input first."""
        layer = self.orig_module
        if isinstance(layer, nn.Conv2d):
            down = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, bias=False)
            return down, nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        return nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)

    def delta(self):
        raise NotImplementedError

    def forward(self, x):
        return self.before(x) + self.layer(x, self.delta().view(self.orig_module.weight.shape))


class LoRAModule(PeftBase):
    def __init__(self, prefix, orig_module, rank, alpha):
        super().__init__(prefix, orig_module)
        self.rank = rank
        self.register_buffer("alpha", torch.tensor(alpha))
        self.initialize_weights()

    def initialize_weights(self):
        self.lora_down, self.lora_up = self.matrices(self.rank)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=5**0.5)
        nn.init.zeros_(self.lora_up.weight)

    def delta(self):
        return self.lora_up.weight.flatten(1) @ self.lora_down.weight.flatten(1) * (self.alpha / self.rank)


class DoRAModule(LoRAModule):
    def initialize_weights(self):
        super().initialize_weights()
        self.dora_scale = nn.Parameter(self.orig_module.weight.detach().flatten(1).norm(dim=1, keepdim=True))

    def forward(self, x):
        weight = self.orig_module.weight.flatten(1) + self.delta()
        weight = self.dora_scale * F.normalize(weight, dim=1)
        return self.layer(x, weight.view(self.orig_module.weight.shape))


class LoHaModule(PeftBase):
    def __init__(self, prefix, orig_module, rank, alpha):
        super().__init__(prefix, orig_module)
        self.factor = alpha / rank
        (down1, up1), (down2, up2) = self.matrices(rank), self.matrices(rank)
        self.hada_w1_a, self.hada_w1_b = up1.weight, down1.weight
        self.hada_w2_a, self.hada_w2_b = nn.Parameter(torch.zeros_like(up2.weight)), down2.weight

    def delta(self):
        first = self.hada_w1_a.flatten(1) @ self.hada_w1_b.flatten(1)
        return first * (self.hada_w2_a.flatten(1) @ self.hada_w2_b.flatten(1)) * self.factor


class LoKrModule(PeftBase):
    """A small factor beside a large one; the large one in two parts if their rank is small enough."""

    def __init__(self, prefix, orig_module, rank, alpha):
        super().__init__(prefix, orig_module)
        rows, columns = orig_module.weight.flatten(1).shape
        self.factor, parts = alpha / rank, rank < 4
        if rank < 2:
            self.lokr_w1_a, self.lokr_w1_b = nn.Parameter(torch.randn(2, 1)), nn.Parameter(torch.randn(1, 2))
        else:
            self.lokr_w1 = nn.Parameter(torch.randn(2, 2))
        if parts:
            self.lokr_w2_a = nn.Parameter(torch.randn(rows // 2, rank))
            self.lokr_w2_b = nn.Parameter(torch.zeros(rank, columns // 2))
        else:
            self.lokr_w2 = nn.Parameter(torch.zeros(rows // 2, columns // 2))

    def delta(self):
        first = self.lokr_w1 if hasattr(self, "lokr_w1") else self.lokr_w1_a @ self.lokr_w1_b
        second = self.lokr_w2 if hasattr(self, "lokr_w2") else self.lokr_w2_a @ self.lokr_w2_b
        return torch.kron(first, second) * self.factor


class OFTModule(PeftBase):
    def __init__(self, prefix, orig_module, block_size, block_share, oft_scaled, dropout_probability=0.0):
        super().__init__(prefix, orig_module)
        self.block_size, self.block_share, self.oft_scaled = block_size, block_share, oft_scaled
        self.dropout_probability = dropout_probability
        self.initialize_weights()

    def initialize_weights(self):
        size, width = self.block_size, self.orig_module.weight[0].numel()
        self.oft_R = OFTRotationModule(
            1 if self.block_share else width // size, size * (size - 1) // 2, size, width, self.block_share,
            self.oft_scaled, dropout_probability=self.dropout_probability,
        )  # fmt: skip

    def forward(self, x):
        if isinstance(self.orig_module, nn.Linear):
            return self.before(self.oft_R(x))
        turn, weight = self.oft_R, self.orig_module.weight
        numbers = turn.weight / (2 * math.sqrt(turn.block_size - 1)) if self.oft_scaled else turn.weight
        blocks = self.oft_R._cayley_batch(numbers, turn.block_size)
        turned = torch.einsum("ork,rkc->orc", weight.flatten(1).unflatten(1, (-1, turn.block_size)), blocks)
        return self.layer(x, turned.reshape(weight.shape))


class LoRAModuleWrapper:
    def __init__(self, orig_module, prefix, config, module_filter=None, fuse=False):
        arguments = (config.lora_rank, config.lora_alpha)
        if config.peft_type is PeftType.OFT_2:
            kind = OFTModule
            arguments = (config.oft_block_size, config.oft_block_share, config.oft_scaled, config.dropout_probability)
        elif config.peft_type is PeftType.LORA:
            kind = DoRAModule if config.lora_decompose else LoRAModule
        else:
            kind = {PeftType.LOHA: LoHaModule, PeftType.LOKR: LoKrModule}[config.peft_type]
        self.lora_modules = {}
        layers = {name: m for name, m in orig_module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        if fuse:
            leaves = [layers.pop(name) for name in list(layers) if name.split(".")[-1] in ("to_q", "to_k", "to_v")]
            self.lora_modules["qkv"] = FusedModuleGroup(f"{prefix}.qkv", leaves, kind, arguments)
        for name, layer in layers.items():
            self.lora_modules[name] = kind(f"{prefix}.{name}", layer, *arguments)

    def parameters(self):
        return [parameter for module in self.lora_modules.values() for parameter in module.parameters()]

    def hook_to_module(self):
        for module in self.lora_modules.values():
            module.hook_to_module()

    def state_dict(self):
        found = {}
        for module in self.lora_modules.values():
            found |= module.state_dict(prefix=module.prefix)
        return found

    def load_state_dict(self, state_dict, strict=True):
        for module in self.lora_modules.values():
            module.load_state_dict(state_dict, strict)
