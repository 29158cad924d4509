"""Variogram score of whole fields: whether the values of a member differ from one another as those of the truth do.

The CRPS scores each value by itself, so it cannot tell members that are coherent from members that are specks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DISTANCES = (1, 2, 4, 8)
"""Distances between the two values of a pair, along a row or a column."""
GRID = 16
"""Pairs start at every (size // GRID)-th row and column, so their number hardly grows with the size of a frame."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of values of a flattened field. first, second: [P], their indices. weight: [P], whose sum is 1."""

    first: Tensor
    second: Tensor
    weight: Tensor


def pairs_of(shape: torch.Size, like: Tensor) -> Pairs:
    """The pairs of the variogram score for fields of shape [C, h, w], on the device and of the type of a tensor.

    Each value on the grid of `GRID` is paired with the one at each of `DISTANCES` below it and to the right of it in
    the same channel, with a weight proportional to 1 / distance; and with the value of the next channel, cyclically, at
    the same position, with the weight of distance 1.
    """
    index = torch.arange(shape.numel(), device=like.device).view(shape)
    rows, columns = (max(1, size // GRID) for size in shape[1:])
    found = [(d, index[:, :-d], index[:, d:]) for d in DISTANCES if d < shape[1]]
    found += [(d, index[..., :-d], index[..., d:]) for d in DISTANCES if d < shape[2]]
    if shape[0] > 1:
        found.append((1, index, index.roll(-1, 0)))
    sets = [(d, a[:, ::rows, ::columns].flatten(), b[:, ::rows, ::columns].flatten()) for d, a, b in found]
    weight = torch.cat([like.new_full(a.shape, 1 / d) for d, a, _ in sets])
    return Pairs(torch.cat([a for _, a, _ in sets]), torch.cat([b for _, _, b in sets]), weight / weight.sum())


def variogram_score(members: Tensor, truth: Tensor) -> Tensor:
    """Fair variogram score of order 1/2 of whole fields (Scheuerer and Hamill 2015).

    It is the weighted mean, over the pairs (i, j) of `pairs_of`, of

        (|y_i - y_j|^(1/2) - mean_m |x_m,i - x_m,j|^(1/2))^2 - s^2 / M,

    where s^2 is the variance of |x_m,i - x_m,j|^(1/2) over the M members. Without s^2 / M, the expectation would depend
    on M; for M = 1 that term is left out.

    members: [n, M, C, h, w]; truth: [n, C, h, w]; returns [n]. n broadcasts, so members that are the same for all
    predicted frames can be passed once.
    """
    pairs, count = pairs_of(truth.shape[-3:], truth), members.shape[1]

    def roots(fields: Tensor) -> Tensor:
        flat = fields.flatten(-3)
        return (flat[..., pairs.first] - flat[..., pairs.second]).abs_().sqrt_()

    made = roots(members)
    mean = made.mean(1)
    gap = (roots(truth) - mean).square()
    if count > 1:
        gap = gap - (made - mean[:, None]).square().sum(1) / (count * (count - 1))  # ten times as fast as Tensor.var
    return gap @ pairs.weight
