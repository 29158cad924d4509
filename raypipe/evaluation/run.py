"""Evaluation of a search: score all combinations on validation, choose the best, test it once, save it in best/."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import ray
import torch

from raypipe.common import terminal
from raypipe.common.errors import ConfigError
from raypipe.common.files import atomic_folder
from raypipe.config import REFERENCE_COMPONENTS, Experiment
from raypipe.distributed.failures import plain_errors
from raypipe.distributed.waiting import Waiting, waiting_for
from raypipe.evaluation.card import write_card
from raypipe.evaluation.choice import choose, loses
from raypipe.evaluation.combinations import (
    Combination,
    CombinationScorer,
    HeldOutSplit,
    Result,
    combinations,
    default_combination,
)
from raypipe.evaluation.films import keep_films
from raypipe.evaluation.perceptual.scores import RealClips, read_real_clips
from raypipe.evaluation.predictor import predictor_manifest
from raypipe.evaluation.protocol import keep_protocol
from raypipe.evaluation.rivals import rival_combinations
from raypipe.evaluation.samples import save_samples
from raypipe.evaluation.table import SPLIT_NAMES, Table
from raypipe.forecast.manifest import JOINT, MANIFEST, model_folder, write_manifest
from raypipe.search import records
from raypipe.search.finalists import Finalist, read_finalists
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import Workspace
from raypipe.workspace.manifest import manifest


@dataclass(frozen=True)
class StageFinalists:
    """The finalists of the stages."""

    flows: list[Finalist]
    denoisers: list[Finalist]
    diffusions: list[Finalist]
    joints: list[Finalist]

    @classmethod
    def read(cls, workspace: Workspace) -> "StageFinalists":
        """Read the finalists of an experiment. The joint stage may be absent.

        Raises ConfigError if another stage is not finished.
        """
        joints = read_finalists(workspace, "joint") if workspace.finalists("joint").is_file() else []
        flows, denoisers, diffusions = (read_finalists(workspace, component) for component in REFERENCE_COMPONENTS)
        return cls(flows, denoisers, diffusions, joints)


def run_evaluation(experiment: Experiment, workspace: Workspace, top_k: int) -> list[records.Row]:
    """Evaluate a search and write `evaluation/`, `samples/` and `best/`. Existing scores are not computed again.

    The candidates and the default are scored on validation, the best of the finalists is chosen by latents and pixels
    (`evaluation.choose_by`), and only the chosen combination and the baselines are scored on test. The trained `rivals`
    are among the baselines. top_k: see
    `combinations`. Returns the rows of combinations.parquet. Raises ConfigError if a stage is not finished, or if
    existing scores are of another protocol.
    """
    data, handed = ExperimentData(experiment, workspace), StageFinalists.read(workspace)
    candidates = combinations(handed.flows, handed.denoisers, handed.diffusions, handed.joints, experiment, top_k)
    evaluation, table = experiment.evaluation, Table(workspace)
    defaults = [default_combination(handed.flows, handed.denoisers, handed.diffusions, n) for n in evaluation.steps]
    keep_protocol(data)
    _score_split(data, "val", [*candidates, *defaults], evaluation.windows, table, decode=False)
    ranked = sorted(candidates, key=lambda c: table.row("val", c).crps_ratio)
    default = min(defaults, key=lambda c: table.row("val", c).crps_ratio)
    finalists = ranked[: evaluation.finalists]
    nothing = Combination(flow=None, denoiser=None, diffusion=None, steps=0)
    persistence = replace(nothing, baseline="persistence")
    rivals = rival_combinations(experiment, workspace)
    for rival in experiment.rivals:
        table.forget(rival, {c.key for c in rivals})
    _score_split(data, "val", [*rivals, *finalists, default, persistence], evaluation.windows, table, decode=True)

    chosen = choose([table.fitted("val", c) for c in finalists], partial(table.row, "val"), evaluation.choose_by)
    without_noise = (
        {"beta": 0.0} if chosen.diffusion == JOINT else {"beta": None, "diffusion": None, "diffusion_model": None}
    )
    alone = replace(chosen, denoiser=None, denoiser_model=None, more_models=(), baseline="flow", **without_noise)
    tested = [
        *(table.fitted("val", c) for c in rivals),
        chosen,
        table.fitted("val", default),
        alone,
        replace(nothing, baseline="climatology"),
        persistence,
        replace(nothing, baseline="reconstruction", decoding=chosen.decoding),
    ]
    keep_films(data, [table.fitted("val", c) for c in ranked])
    last_frame_won = loses(asdict(table.row("val", chosen)))
    if "test" not in data.splits:
        keep_best(data, chosen, last_frame_won)
        write_card(data, table.rows, chosen.key)
        raise ConfigError(
            f"dataset.root: no test split in {str(workspace.dataset(experiment))!r}, so what was chosen on validation,"
            f" {workspace.best}, is not tested; add the split and run python -m raypipe.evaluate"
        )
    _score_split(data, "test", tested, evaluation.test_windows, table, decode=True)
    table.mark_chosen(chosen, default)
    keep_best(data, chosen, last_frame_won)
    write_card(data, table.rows, chosen.key)
    best_rival = min(tested[: len(rivals)], key=lambda c: table.row("test", c).crps_ratio, default=None)
    save_samples(data, table.score("test", chosen), best_rival)
    return table.rows


def _score_split(
    data: ExperimentData, split: HeldOutSplit, wanted: Sequence[Combination], count: int, table: Table, *, decode: bool
) -> None:
    """Score, in parallel Ray tasks, the combinations that have no row in the table yet.

    On test, perceptual scores are among them; they choose nothing, so there are none on validation.
    """
    left = [c for c in wanted if not table.has(split, c, decoded=decode)]
    if not left:
        return
    search = data.experiment.search
    as_task = ray.remote(num_cpus=search.cpus_per_trial, num_gpus=min(1.0, search.gpus_per_trial), max_retries=2)
    task = as_task(_score)
    real: Any = None  # or a reference to RealClips
    if split == "test":
        real = as_task(_real_clips).remote(data, split, count, search.cpus_per_trial)
    pending = {task.remote(data, split, c, count, decode, search.cpus_per_trial, real): c for c in left}
    name = f"{'decode' if decode else 'score'} on {SPLIT_NAMES[split]}"
    with terminal.progress_bar(name, len(left), "combination") as bar:
        each = {"CPU": search.cpus_per_trial, "GPU": min(1.0, search.gpus_per_trial)}
        waiting = Waiting(lambda: waiting_for(f"{len(pending)} combinations", each))
        while pending:
            done, _ = ray.wait(list(pending), timeout=1.0)
            waiting.look(len(pending) - len(done))
            for reference in done:
                with plain_errors():
                    table.add(split, ray.get(reference))
                pending.pop(reference)
                bar.update()


def _score(
    data: ExperimentData,
    split: HeldOutSplit,
    combination: Combination,
    count: int,
    decode: bool,
    threads: int,
    real: RealClips | None,
) -> Result:
    torch.set_num_threads(threads)
    scorer = CombinationScorer(data, split, count)
    return scorer.score(scorer.fit(combination), decode=decode, real=real)


def _real_clips(data: ExperimentData, split: HeldOutSplit, count: int, threads: int) -> RealClips:
    torch.set_num_threads(threads)
    return read_real_clips(data, split, count)


def keep_best(data: ExperimentData, chosen: Combination, last_frame_won: bool = False) -> None:
    """Copy the models of the chosen combination to `best/`, and write the manifest of the predictor.

    They are kept even if repeating the last frame was better on validation: the manifest says so.
    """
    workspace = data.workspace
    with atomic_folder(workspace.best) as folder:
        shutil.copytree(workspace.autoencoder, folder / "autoencoder")
        for component, models in (
            (chosen.flow_component, (chosen.flow_model, *chosen.more_models)),
            ("denoiser", (chosen.denoiser_model,)),
            ("diffusion", (chosen.diffusion_model,)),
        ):
            for number, model in enumerate(models, 1):
                if model is not None:
                    shutil.copytree(workspace.folder / component / model, folder / model_folder(component, number))
        best = replace(predictor_manifest(data, chosen), last_frame_won=last_frame_won)
        write_manifest(folder / MANIFEST, best, ran=manifest(data.experiment))


def is_searched(workspace: Workspace) -> bool:
    """Whether all stages are finished, apart from the joint stage, which may be absent."""
    return all(workspace.finalists(component).is_file() for component in REFERENCE_COMPONENTS)
