"""Films of the finalists, as artifacts of their trials in the Optuna study, where optuna-dashboard shows them."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from raypipe.common.errors import first_line
from raypipe.config import Component, ConfigError
from raypipe.data.video.io import Frames, write_gif
from raypipe.evaluation.combinations import Combination
from raypipe.evaluation.predictor import combination_predictor
from raypipe.evaluation.samples import forecast_first
from raypipe.forecast.film import FILM_FPS, forecast_film
from raypipe.forecast.manifest import CONSTANT, JOINT
from raypipe.search.artifacts import store_artifacts
from raypipe.workspace.claims import alone
from raypipe.workspace.dataset import ExperimentData

logger = logging.getLogger(__name__)

FILM = "forecast.gif"
"""Name of the artifact."""


def keep_films(data: ExperimentData, combinations: Sequence[Combination]) -> None:
    """Film a validation window as forecast by the best combination of each finalist; replaces earlier films.

    combinations: with fitted beta, best first. Where the study cannot be written, a line says so: films must not cost
    an evaluation.
    """
    workspace = data.workspace
    if not workspace.study.is_file():
        return
    with tempfile.TemporaryDirectory() as folder:
        films = {}
        for number, (combination, finalists) in enumerate(best_of_finalists(combinations)):
            path = Path(folder) / str(number) / FILM
            path.parent.mkdir()
            write_gif(path, film(data, combination), FILM_FPS)
            films.update(dict.fromkeys(finalists, path))
        try:
            with alone(workspace):
                store_artifacts(workspace, films)
        except (ConfigError, OSError) as error:
            logger.warning("%s: without the films of the finalists (%s)", workspace.study, first_line(error))


def best_of_finalists(combinations: Sequence[Combination]) -> list[tuple[Combination, list[tuple[Component, str]]]]:
    """The combinations that are the best of a finalist, each with these finalists, by stage and trial."""
    best: dict[tuple[Component, str], int] = {}
    for number, combination in enumerate(combinations):
        diffusion = None if combination.diffusion in (CONSTANT, JOINT) else combination.diffusion
        parts: list[tuple[Component, str | None]] = [
            (combination.flow_component, combination.flow),
            ("denoiser", combination.denoiser),
            ("diffusion", diffusion),
        ]
        for component, trial in parts:
            if trial is not None:
                best.setdefault((component, trial), number)
    return [
        (combinations[number], [finalist for finalist, place in best.items() if place == number])
        for number in dict.fromkeys(best.values())
    ]


def film(data: ExperimentData, combination: Combination) -> Frames:
    """Film of a validation window, of the truth and of members, see `forecast_film`."""
    made = forecast_first(data, "val", combination_predictor(data, combination))
    given = made["given"]
    return forecast_film(made["truth"][:given], made["prediction"], truth=made["truth"][given:])
