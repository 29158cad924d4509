"""raypipe: distributed hyperparameter search on Ray for neural-SDE video prediction."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raypipe.checkpoint import load_autoencoder, load_component
    from raypipe.data.shards import open_shards
    from raypipe.forecast.predictor import load_predictor
    from raypipe.report.view import open_search

__all__ = ["load_autoencoder", "load_component", "load_predictor", "open_search", "open_shards"]

_HOME = {
    "open_shards": "raypipe.data.shards",
    "load_component": "raypipe.checkpoint",
    "load_autoencoder": "raypipe.checkpoint",
    "load_predictor": "raypipe.forecast.predictor",
    "open_search": "raypipe.report.view",
}


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that `--help` does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'raypipe' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
