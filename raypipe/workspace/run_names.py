"""Names of training runs, `<component>-<noise>-<loss>`: f-01-nll is a flow at s = 0.1 with loss nll."""

import re
from dataclasses import dataclass

from raypipe.config import LOSSES, Component, ConfigError


@dataclass(frozen=True)
class RunName:
    """The settings in a run name: component, noise level s and loss (None: a denoiser, whose loss has no name)."""

    component: Component
    noise_std: float
    loss: str | None


LETTERS: dict[str, Component] = {"f": "flow", "d": "denoiser", "g": "diffusion", "j": "joint"}


def parse_run_name(name: str) -> RunName:
    """Parse a run name. The reference code writes `null` for nll. Raises ConfigError for an invalid name."""
    match = re.fullmatch(r"([a-z]+)-(\d+)(?:-([a-z_]+))?", name)
    component = LETTERS.get(match[1]) if match else None
    losses = LOSSES[component] if component else ()
    loss = "nll" if match and match[3] == "null" else match[3] if match else None
    if match is None or component is None or (loss is not None and loss not in losses) or (losses and loss is None):
        if match is not None and component == "denoiser" and loss == "nll":
            return RunName(component, _noise(match[2]), None)
        choices = "f-<noise>-nll|mse, d-<noise>, g-<noise>-regression|nll or j-<noise>-crps_energy|crps|energy"
        raise ConfigError(
            f"--run-name: must be {choices}, such as f-01-nll (s = 0.1), not {name!r}; for other names also give "
            "--component, --noise-std and --loss"
        )
    return RunName(component, _noise(match[2]), loss)


def _noise(digits: str) -> float:
    """The noise level from its digits, where the decimal point follows a leading zero: `01` is 0.1, `1` is 1."""
    return float(f"0.{digits[1:]}") if digits.startswith("0") and len(digits) > 1 else float(digits)


def run_name(component: Component, noise_std: float, loss: str | None) -> str:
    """The inverse of `parse_run_name`."""
    digits = f"{noise_std:g}".replace(".", "")
    letter = next(key for key, value in LETTERS.items() if value == component)
    return "-".join([letter, digits, *([loss] if loss else [])])
