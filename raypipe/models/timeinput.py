"""The time u within a frame interval as an input of a backbone."""

from torch import Tensor

from raypipe.common.errors import UserError


def check_time(x: Tensor, u: Tensor | None) -> Tensor:
    """u [b] for states x [b, ...]. Raises UserError if it is missing or has another shape."""
    if u is None or u.shape != x.shape[:1]:
        found = "missing" if u is None else f"of shape {list(u.shape)}"
        raise UserError(f"u: a network with time_input needs one value per state, [{len(x)}], but it is {found}")
    return u
