"""Model folders: `model.safetensors` and `config.json`, beside them what a training resumes from.

`python -m raypipe.checkpoint import` makes such a folder of a file of the reference code, `export` goes back.
"""

from raypipe.checkpoint.folder import (
    MODEL,
    OPTIMIZER,
    PARTS,
    Meta,
    autoencoder_hash,
    copy_component,
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
    "load_autoencoder",
    "load_component",
    "load_optimizer",
    "read_meta",
    "restore",
    "save_autoencoder",
    "save_component",
    "weights_hash",
]
