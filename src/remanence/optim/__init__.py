"""Grass: full-parameter training by structured sparse gradients (arXiv 2406.17660).

    groups = grass_param_groups(model, rank=128, update_proj_gap=200, scale=0.25, selection="top")
    optimizer = GrassAdamW(groups, lr=1e-3)

The gradient of a projected linear layer is computed for `rank` selected rows only; optimizer state and what processes
exchange have the size of these rows.
"""

from remanence.optim.adamw import GrassAdamW
from remanence.optim.groups import grass_param_groups
from remanence.optim.layers import release
from remanence.optim.projection import Projection
from remanence.optim.selection import Rule
from remanence.optim.summary import summary

__all__ = ["GrassAdamW", "Projection", "Rule", "grass_param_groups", "release", "summary"]
