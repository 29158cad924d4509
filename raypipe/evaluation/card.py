"""best/README.md: the model card of a predictor, with its scores, their protocol, a strip of frames and how to use it.

The Hugging Face Hub shows it as the page of a model that `python -m raypipe.checkpoint push` uploaded.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import yaml
from PIL import Image

from raypipe.checkpoint.hub import CARD, PLACEHOLDER
from raypipe.common.files import write_atomic, write_json
from raypipe.config import RIVALS
from raypipe.evaluation.combinations import HeldOutSplit
from raypipe.evaluation.protocol import in_words, read_protocol
from raypipe.evaluation.samples import forecast_first
from raypipe.evaluation.table import BASELINES, SPLIT_NAMES
from raypipe.forecast.film import enlarge, spread, strip
from raypipe.forecast.manifest import Manifest, read_manifest
from raypipe.search.records import Row, is_finite
from raypipe.workspace.dataset import ExperimentData

STRIP = "strip.png"
PROTOCOL = "protocol.json"
TALL = 96
"""Frames of the strip are enlarged to about this height, in pixels."""
SCORES = {
    "crps_ratio": "CRPS ratio",
    "crps_ratio_pixels": "in pixels",
    "energy_ratio_pixels": "energy",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "fvd": "FVD",
    "spread_skill": "spread/skill",
    "nfe_per_frame": "calls per frame",
}
"""Columns of combinations.parquet in the table of the card, and their headers; those without any value are left out."""
MEANING = """The CRPS ratio is the fair CRPS of the ensemble over that of the last given frame repeated, in latents and
in pixels: 0 is perfect, and a useful model is below climatology. Energy is the same for the fair energy score of whole
frames. PSNR (dB) and SSIM are of single members; spread/skill is 1 for a reliable ensemble."""


def write_card(data: ExperimentData, rows: Sequence[Row], chosen: str) -> None:
    """Write `README.md`, and with it `strip.png` and `protocol.json`, to the `best/` of an experiment.

    rows: of combinations.parquet, of which those on test are shown; on validation where the dataset has no test split.
    chosen: key of the combination in best/.
    """
    best = data.workspace.best
    split: HeldOutSplit = "test" if "test" in data.splits else "val"
    sample = forecast_first(data, split)
    write_atomic(best / STRIP, _strip(sample["truth"], sample["prediction"], sample["given"]))
    protocol = read_protocol(data.workspace)
    assert protocol is not None
    # Where the dataset lies on this machine is of no use to others.
    write_json(best / PROTOCOL, protocol | {"dataset": protocol["dataset"] | {"root": None}})
    mine = [r for r in rows if r["split"] == SPLIT_NAMES[split] and (r["key"] == chosen or r["baseline"] is not None)]
    scored = sorted((r | {"chosen": r["key"] == chosen} for r in mine), key=lambda r: r["crps_ratio"])
    line = in_words(protocol, SPLIT_NAMES[split], PROTOCOL)
    card = _card(data.workspace.name, read_manifest(best), scored, line, data.experiment.evaluation.horizon)
    write_atomic(best / CARD, card)


def _card(name: str, manifest: Manifest, rows: Sequence[Row], protocol: str, horizon: int) -> str:
    """The text of the card. rows: of one split, best first. protocol: in words."""
    split = rows[0]["split"]
    size, given = manifest.image_size, manifest.num_input_frames
    named = {"flow": manifest.flow, "denoiser": manifest.denoiser, "diffusion": manifest.diffusion}
    parts = [f"{part} {name}" for part, name in named.items() if name is not None]
    steps = f"{manifest.steps} step{'s' * (manifest.steps != 1)}"
    lost = "\n\nOn validation, repeating the last frame is better than this model's frames."
    warning = lost if manifest.last_frame_won else ""
    return f"""---
{yaml.safe_dump(_metadata(name, manifest.dataset, rows), sort_keys=False).strip()}
---
# {name}

A neural-SDE video predictor: given {given} frames of {size}x{size} pixels, it samples what follows, as an ensemble, and
the frames in between. raypipe found it by a search on the dataset {manifest.dataset}.{warning}

![A clip of the {split} split: the truth above, one predicted member below]({STRIP})

```python
import raypipe
predictor = raypipe.load_predictor("{PLACEHOLDER}")  # or the path of this folder
future = predictor.predict(frames, horizon={horizon}, members=4)  # [b, T, 3, {size}, {size}] in [-1, 1], T >= {given}
```

## Scores on {split}

{_table(rows)}

{protocol}.

{MEANING}

Made of {", ".join(parts)}; alpha {manifest.alpha:g}, beta {manifest.beta:g}, {steps} a frame by
{manifest.solver}, decoding {manifest.decoding}; `manifest.json` has the versions and seeds.
"""


def _metadata(name: str, dataset: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The metadata block, with the scores of the chosen combination as the Hub's model index."""
    row = next(row for row in rows if row["chosen"])
    result = {
        "task": {"type": "video-prediction", "name": "video prediction"},
        "dataset": {"type": dataset, "name": dataset, "split": row["split"]},
        "metrics": [
            {"type": key, "name": label, "value": float(row[key])}
            for key, label in SCORES.items()
            if is_finite(row[key])
        ],
    }
    return {
        "library_name": "raypipe",
        "tags": ["raypipe", "video-prediction", "neural-sde"],
        "model-index": [{"name": name, "results": [result]}],
    }


def _table(rows: Sequence[Row]) -> str:
    shown = [key for key in SCORES if any(is_finite(row[key]) for row in rows)]
    cells = [["forecast", *(SCORES[key] for key in shown)], ["---"] * (1 + len(shown))]
    for row in rows:
        label = "**this model**" if row["chosen"] else BASELINES.get(row["baseline"], str(row["key"]))
        if row["baseline"] in RIVALS:
            label += f", {row['steps']} steps"
        cells.append([label, *(_cell(row, key) for key in shown)])
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _cell(row: Row, key: str) -> str:
    digits = 0 if key == "nfe_per_frame" else 3
    numbers = [f"{n:.{digits}f}" for n in (row[key], row.get(f"{key}_se")) if is_finite(n)]
    return " ± ".join(numbers) or "–"


def _strip(truth: Any, members: Any, given: int) -> bytes:
    """PNG of two rows, each after the last given frame: the true frames, and the first member's."""
    horizon = members.shape[1]
    steps = spread(horizon)
    last = truth[given - 1 : given]
    rows = [
        strip(np.concatenate([last, truth[given + steps]]), 1 + len(steps)),
        strip(np.concatenate([last, members[0, steps]]), 1),
    ]
    image = enlarge(np.concatenate(rows), max(1, TALL // truth.shape[1]))
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
