"""Brownian motion as a function of (seed, window, member, frame, time), and of nothing else.

Forecasts that share these five share their noise, whatever they are batched with, however many members there
are, into how many steps a frame is cut, which solver takes them and which in-between frames are read out.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

Wiener = Callable[[Sequence[Fraction]], list[Tensor]]
"""W at ascending rational times in (0, 1], one tensor a time; W_0 = 0."""


def forecast_keys(seed: int, windows: Tensor, members: Tensor) -> Tensor:
    """The key of each forecast's noise, int64 [b], from the numbers of its window and member, int64 [b].

    The noise is made where these lie: on a GPU nothing is copied, and its integers are those of the CPU.
    """
    digest = hashlib.blake2b(str(int(seed)).encode(), digest_size=8).digest()
    start = torch.full_like(windows, int.from_bytes(digest, "little", signed=True))
    return _absorb(_absorb(start, windows), members)


def brownian(keys: Tensor, frame: int, shape: Sequence[int]) -> Wiener:
    """The motions [b, *shape] that drive predicted frame number `frame` of the forecasts with these keys, [b].

    Every rational time has its own value. p/q lies between its Farey parents a/b and c/d, which are neighbours
    among all fractions with denominators below q = b + d; so, given these, it depends on the parents alone, and
    Levy's bridge between them comes to

        W(p/q) = (b W(a/b) + d W(c/d) + Z(p/q)) / q,   Z standard normal,

    or, for V(p/q) = q W(p/q), V(p/q) = V(a/b) + V(c/d) + Z(p/q), from V(0/1) = 0 and V(1/1) = Z(1/1). W at
    the times of 2 steps is therefore, to the bit, W at every other time of 4, or at three of the times of 6.
    (Levy's construction halves instead, and reaches no third or tenth.)
    """
    own = _absorb(keys, frame)

    def normal(p: int, q: int) -> Tensor:
        values = standard_normal(_absorb(_absorb(own, q), p), math.prod(shape))
        return values.view(len(keys), *shape)

    def wiener(times: Sequence[Fraction]) -> list[Tensor]:
        assert all(0 < t <= 1 for t in times) and list(times) == sorted(set(times))
        end = normal(1, 1)
        found = {Fraction(1): end}
        inside = [t for t in times if t < 1]
        todo = [(0, 1, torch.zeros_like(end), 1, 1, end, inside)] if inside else []
        while todo:
            a, b, left, c, d, right, inside = todo.pop()
            p, q = a + c, b + d
            between, middle = left + right + normal(p, q), Fraction(p, q)
            before, after = [t for t in inside if t < middle], [t for t in inside if t > middle]
            if len(before) + len(after) < len(inside):
                found[middle] = between / q
            if after:
                todo.append((p, q, between, c, d, right, after))
            if before:
                todo.append((a, b, left, p, q, between, before))
        return [found[t] for t in times]

    return wiener


def standard_normal(keys: Tensor, count: int) -> Tensor:
    """`count` standard normals for every key [b], float32 [b, count]: SplitMix64, then Box and Muller's transform.

    SplitMix64 (Steele, Lea and Flood 2014) counts up from the key and mixes the count; each of its 64-bit words
    gives two uniforms and so two normals, at most 6.7 in size. In float64, so that devices round alike.
    """
    pairs = (count + 1) // 2
    counter = torch.arange(1, pairs + 1, device=keys.device) * _GOLDEN
    words = _mix(keys[:, None] + counter)
    uniform = (words >> 32).double().add_(2**31 + 0.5).mul_(2.0**-32)  # the upper half, signed; never 0 or 1
    angle = words.bitwise_and_(0xFFFFFFFF).double().mul_(2 * math.pi * 2.0**-32)
    radius = uniform.log_().mul_(-2).sqrt_()
    return torch.cat([(angle.cos() * radius).float(), (angle.sin_() * radius).float()], dim=1)[:, :count]


def _signed(word: int) -> int:
    """A 64-bit word as torch's int64 has it; its products wrap around as unsigned ones do."""
    return word - (1 << 64) if word >> 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _absorb(state: Tensor, word: Tensor | int) -> Tensor:
    """A new state for every word: different words never give one state the same successor."""
    return _mix((state ^ word) + _GOLDEN)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finalizer, a bijection of 64-bit words."""
    z = (z ^ _shift(z, 30)).mul_(_FIRST)
    z.bitwise_xor_(_shift(z, 27)).mul_(_SECOND)
    return z.bitwise_xor_(_shift(z, 31))


def _shift(z: Tensor, bits: int) -> Tensor:
    """To the right, filling with zeros, which int64's own shift does not."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)
