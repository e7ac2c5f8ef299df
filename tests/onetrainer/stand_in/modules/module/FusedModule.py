import torch
from torch import nn


class FusedModuleGroup:
    """One adapter over some layers that have the same input; not a module itself, it holds one."""

    def __init__(self, prefix, leaves, klass, arguments):
        whole = nn.Linear(leaves[0].in_features, sum(leaf.out_features for leaf in leaves), bias=False)
        whole.requires_grad_(False)
        whole.weight.copy_(torch.cat([leaf.weight for leaf in leaves]))
        self.leaves, self.whole = leaves, whole
        self.module = klass(prefix, whole, *arguments)
        self.prefix = self.module.prefix

    def hook_to_module(self):
        self.module.hook_to_module()
        start = 0
        for leaf in self.leaves:
            end = start + leaf.out_features
            leaf.forward = lambda x, start=start, end=end: self.whole(x)[..., start:end]
            start = end

    def parameters(self):
        return self.module.parameters()

    def state_dict(self, prefix=""):
        return self.module.state_dict(prefix=prefix)

    def load_state_dict(self, state_dict, strict=True):
        return self.module.load_state_dict(state_dict, strict)
