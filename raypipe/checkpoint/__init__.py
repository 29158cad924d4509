"""Model folders: `model.safetensors` and `config.json`, plus the state that a training needs to resume.

`python -m raypipe.checkpoint import` converts a checkpoint file of the reference code to a model folder; `export`
converts it back.
"""

from raypipe.checkpoint.folder import (
    MODEL,
    OPTIMIZER,
    PARTS,
    Meta,
    autoencoder_hash,
    copy_component,
    drop_training_state,
    drop_weights,
    load_autoencoder,
    load_component,
    load_optimizer,
    read_meta,
    restore,
    save_autoencoder,
    save_component,
    weights_hash,
)

__all__ = [
    "MODEL",
    "OPTIMIZER",
    "PARTS",
    "Meta",
    "autoencoder_hash",
    "copy_component",
    "drop_training_state",
    "drop_weights",
    "load_autoencoder",
    "load_component",
    "load_optimizer",
    "read_meta",
    "restore",
    "save_autoencoder",
    "save_component",
    "weights_hash",
]
