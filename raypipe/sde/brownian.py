"""Brownian motion as a deterministic function of (seed, window, member, frame, time).

The noise of a forecast therefore does not depend on the batch, the number of members, the number of integration
steps, the solver or the in-between frames.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

Wiener = Callable[[Sequence[Fraction]], list[Tensor]]
"""Values of a Brownian motion W with W(0) = 0: ascending rational times in (0, 1] -> one tensor [b, C, h, w] each."""


def forecast_keys(seed: int, windows: Tensor, members: Tensor) -> Tensor:
    """Random key of each forecast, int64 [b], from the indices of its window and member, int64 [b].

    The keys are on the device of `windows`, and so is the noise that `brownian` makes from them. They are integers, so
    a CPU and a GPU give the same keys.
    """
    digest = hashlib.blake2b(str(int(seed)).encode(), digest_size=8).digest()
    start = torch.full_like(windows, int.from_bytes(digest, "little", signed=True))
    return _absorb(_absorb(start, windows), members)


def brownian(keys: Tensor, frame: int, shape: Sequence[int]) -> Wiener:
    """Brownian motions [b, *shape] over the interval of predicted frame number `frame`, for forecasts with keys [b].

    Values are drawn along the Stern-Brocot tree of fractions. p/q lies between its Farey parents a/b and c/d, which
    are neighbors among all fractions with denominators below q = b + d. Given the values at those fractions, W(p/q)
    depends only on its parents, and the Brownian bridge between them is

        W(p/q) = (b W(a/b) + d W(c/d) + Z(p/q)) / q,   Z standard normal.

    With V(p/q) = q W(p/q), this is V(p/q) = V(a/b) + V(c/d) + Z(p/q), from V(0/1) = 0 and V(1/1) = Z(1/1).

    So the value at a rational time does not depend on the other times: the values for 2 steps are bitwise equal to
    every second value for 4 steps and every third for 6. Levy's construction, which halves intervals, does not reach
    thirds or tenths.
    """
    frame_keys = _absorb(keys, frame)

    def normal(p: int, q: int) -> Tensor:
        values = standard_normal(_absorb(_absorb(frame_keys, q), p), math.prod(shape))
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


def brownian_end(keys: Tensor, frame: int, shape: Sequence[int]) -> Tensor:
    """W(1) of the Brownian motions that `brownian` makes from these arguments, [b, *shape]: standard normal."""
    return brownian(keys, frame, shape)([Fraction(1)])[0]


def standard_normal(keys: Tensor, count: int) -> Tensor:
    """`count` standard normals for each key [b], float32 [b, count], by SplitMix64 and the Box-Muller transform.

    SplitMix64 (Steele, Lea and Flood 2014) counts up from the key and mixes the count. Each of its 64-bit words gives
    two uniforms and so two normals, of magnitude at most 6.7. The transform is computed in float64, so that results on
    different devices agree after rounding to float32.
    """
    pairs = (count + 1) // 2
    counter = torch.arange(1, pairs + 1, device=keys.device) * _GOLDEN
    words = _mix(keys[:, None] + counter)
    # From the upper 32 bits, a signed number; adding 2^31 + 1/2 keeps the uniform away from 0 and 1.
    uniform = (words >> 32).double().add_(2**31 + 0.5).mul_(2.0**-32)
    angle = words.bitwise_and_(0xFFFFFFFF).double().mul_(2 * math.pi * 2.0**-32)
    radius = uniform.log_().mul_(-2).sqrt_()
    return torch.cat([(angle.cos() * radius).float(), (angle.sin_() * radius).float()], dim=1)[:, :count]


def _signed(word: int) -> int:
    """The int64 with the same bits as an unsigned 64-bit word. Products of both wrap around to the same bits."""
    return word - (1 << 64) if word >> 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _absorb(state: Tensor, word: Tensor | int) -> Tensor:
    """Hash `word` into `state`. For a given state, different words give different results."""
    return _mix((state ^ word) + _GOLDEN)


def _mix(z: Tensor) -> Tensor:
    """The finalizer of SplitMix64, a bijection of 64-bit words."""
    z = (z ^ _shift(z, 30)).mul_(_FIRST)
    z.bitwise_xor_(_shift(z, 27)).mul_(_SECOND)
    return z.bitwise_xor_(_shift(z, 31))


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift. `>>` on int64 is arithmetic: it fills with the sign bit."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)
