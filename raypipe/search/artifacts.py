"""Files that show what a trial became, as artifacts in the Optuna study, which optuna-dashboard shows at the trial."""

import mimetypes
import uuid
from collections.abc import Mapping
from pathlib import Path

import optuna
from optuna.artifacts import ArtifactMeta, FileSystemArtifactStore

from raypipe.config import COMPONENTS, Component
from raypipe.search.optuna_internals import artifacts, set_artifact
from raypipe.search.study import open_storage, trial_name
from raypipe.workspace.layout import Workspace


def store_artifacts(workspace: Workspace, files: Mapping[tuple[Component, str], Path]) -> None:
    """Copy files to the artifacts of a search, one for a trial, by stage and name; all earlier ones are replaced.

    The caller must have locked the experiment. Names that no trial has, as that of the default diffusion, are left out.
    """
    storage = open_storage(workspace.study)
    workspace.artifacts.mkdir(exist_ok=True)
    store = FileSystemArtifactStore(str(workspace.artifacts))
    begun = optuna.get_all_study_names(storage)
    for component in (component for component in COMPONENTS if component in begun):
        study = optuna.load_study(study_name=component, storage=storage)
        for trial in study.get_trials(deepcopy=False):
            name = trial_name(component, trial.number)
            key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"raypipe/{name}"))  # the same for each evaluation
            known, path = artifacts(study, trial), files.get((component, name))
            if path is not None:
                with path.open("rb") as content:
                    store.write(key, content)
                kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
                if key not in known:
                    set_artifact(study, trial, key, ArtifactMeta(key, path.name, kind, None))
            elif key in known:
                set_artifact(study, trial, key, None)
                (workspace.artifacts / key).unlink(missing_ok=True)
