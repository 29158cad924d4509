"""The splits of a dataset."""

from typing import Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
"""Names of the splits, and of their folders in a dataset."""
