"""What a search keeps of the models of its trials, as `search.keep` says.

Trials that have ended do not train on, and finalists are trained from scratch: what the optimizer needs can go as soon
as the study has recorded the end of a trial, before the next one fills the disk. Weights of weak trials go when the
finalists of the stage are known.
"""

from collections.abc import Sequence

from raypipe import checkpoint
from raypipe.search.finalists import Finalist, Trial
from raypipe.search.stage import Stage
from raypipe.search.study import has_ended, known_trials, open_storage, trial_name


def forget_training(stage: Stage, name: str) -> None:
    """Delete what only the further training of a trial or refit would need, unless all is kept."""
    if stage.experiment.search.keep != "all":
        checkpoint.drop_training_state(stage.workspace.run(stage.component, name))


def tidy(stage: Stage, ranked: Sequence[Trial], finalists: Sequence[Finalist]) -> None:
    """Delete what is not kept of a stage whose finalists are written; interrupted, the next call completes it.

    ranked: the trials that have a score, best first.
    """
    keep, workspace, component = stage.experiment.search.keep, stage.workspace, stage.component
    if keep == "all":
        return
    ended = _ended(stage)
    for name in [*ended, *(model for finalist in finalists for model in finalist.models)]:
        forget_training(stage, name)
    best = ranked[:keep] if isinstance(keep, int) else []
    kept = {trial.name for trial in best} | {finalist.trial for finalist in finalists}
    for name in ended:
        if name not in kept:
            checkpoint.drop_weights(workspace.run(component, name))


def _ended(stage: Stage) -> list[str]:
    """Names of the trials that have ended; the others go on when the search is resumed, or its space changed back."""
    if not stage.workspace.study.exists():
        return []
    known = known_trials(open_storage(stage.workspace.study), stage.component)
    return [trial_name(stage.component, trial.number) for trial in known if has_ended(trial)]
