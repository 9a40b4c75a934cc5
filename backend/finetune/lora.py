"""Low-rank updates of a network's linear layers (LoRA, Hu et al. 2021), for networks too large to be trained whole.

    y = W x + b + U D x,   D (r,in), U (out,r)

W and b stay as they are; D starts at random and U at zero, so that the student starts as its teacher. The paper's
scale of the update, alpha / r, is left out: with Adam it does little more than change the learning rate. Layers of the
encoder (`encoder_parts`) get no update, nor does one whose weight the network has in a second place (Puppeteer's output
head is its embedding): merging would change that place, too.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """A linear layer with an update of low rank; its weight and bias keep their names, `down` and `up` join them."""

    def __init__(self, layer: nn.Linear, rank: int, generator: torch.Generator):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        outputs, inputs = layer.weight.shape
        rank = min(rank, inputs, outputs)
        down = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
        self.down = nn.Parameter(down.to(layer.weight))
        self.up = nn.Parameter(layer.weight.new_zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.down), self.up)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer that does the same."""
        outputs, inputs = self.weight.shape
        with torch.device("meta"):
            layer = nn.Linear(inputs, outputs, bias=self.bias is not None)
        layer.weight = nn.Parameter(self.weight + self.up @ self.down)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.clone())
        return layer


def with_lora(network: nn.Module, rank: int, seed: int = 0) -> nn.Module:
    """The network itself, its linear layers outside `encoder_parts` with updates of this rank (at most full rank).

    Only the updates are left trainable. The network is changed in place; what its old parameters hold is not. `seed`
    draws the updates' first half.
    """
    assert rank >= 1, rank
    generator = torch.Generator().manual_seed(seed)
    places = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    network.requires_grad_(False)
    for name, layer in list(network.named_modules()):
        in_encoder = name.split(".")[0] in network.encoder_parts
        if type(layer) is nn.Linear and not in_encoder and places[id(layer.weight)] == 1:
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, LowRankLinear(layer, rank, generator))
    return network


def merged(network: nn.Module) -> nn.Module:
    """A network of the original class with the updates added to the weights, every parameter trainable.

    The network given is left as it is; parameters that have no update share their memory with it.
    """
    done = {id(parameter): nn.Parameter(parameter.detach()) for parameter in network.parameters()}
    done |= {id(layer): layer.merged() for layer in network.modules() if isinstance(layer, LowRankLinear)}
    return copy.deepcopy(network, done)
