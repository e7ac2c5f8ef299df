import math

import torch
from torch import nn


class OFTRotationModule(nn.Module):
    """Rotates blocks of an input; how exactly does not matter here, so it is the exact Cayley map."""

    def __init__(
        self, r, n_elements, block_size, in_features, block_share=False, oft_scaled=False,
        use_cayley_neumann=True, num_cayley_neumann_terms=5, dropout_probability=0.0,
    ):  # fmt: skip
        super().__init__()
        self.r, self.n_elements, self.block_size, self.in_features = r, n_elements, block_size, in_features
        self.block_share, self.oft_scaled, self.dropout = block_share, oft_scaled, nn.Dropout(dropout_probability)
        self.use_cayley_neumann, self.num_cayley_neumann_terms = use_cayley_neumann, num_cayley_neumann_terms
        self.weight = nn.Parameter(torch.zeros(r, n_elements))
        if oft_scaled:
            self.register_buffer("scaled_oft", torch.tensor(True))

    def _cayley_batch(self, Q, block_size, use_cayley_neumann=True, num_neumann_terms=5):
        above = torch.ones(block_size, block_size).triu(1).flatten().nonzero()[:, 0]
        skew = torch.zeros(len(Q), block_size**2, dtype=Q.dtype).index_copy(1, above, Q).unflatten(1, (block_size, -1))
        skew = skew - skew.mT
        one = torch.eye(block_size, dtype=Q.dtype)
        return torch.linalg.solve(one + skew, one - skew)

    def forward(self, x):
        numbers = self.weight / (2 * math.sqrt(self.block_size - 1)) if self.oft_scaled else self.weight
        turns = self._cayley_batch(numbers, self.block_size, self.use_cayley_neumann, self.num_cayley_neumann_terms)
        turns = turns.expand(self.in_features // self.block_size, -1, -1)
        return torch.einsum("...rk,rkc->...rc", x.unflatten(-1, (-1, self.block_size)), turns).flatten(-2)
