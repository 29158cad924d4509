"""What MLflow has of an experiment, read as its UI does."""

from dataclasses import dataclass

from mlflow import MlflowClient


@dataclass(frozen=True)
class Shown:
    """A run. parent: name of its parent run. metrics: all points of each, in the order of steps, as (step, value)."""

    id: str
    name: str
    parent: str | None
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, list[tuple[int, float]]]


def read_runs(uri: str) -> dict[str, Shown]:
    """The runs of the experiment `raypipe`, by name; each name has one run."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("raypipe")
    found = client.search_runs([experiment.experiment_id], max_results=1000) if experiment else []
    names = {run.info.run_id: run.info.run_name for run in found}
    assert len(set(names.values())) == len(found), sorted(names.values())
    return {
        run.info.run_name: Shown(
            run.info.run_id,
            run.info.run_name,
            names.get(run.data.tags.get("mlflow.parentRunId")),
            run.info.status,
            run.data.tags,
            run.data.params,
            {
                name: sorted((each.step, each.value) for each in client.get_metric_history(run.info.run_id, name))
                for name in run.data.metrics
            },
        )
        for run in found
    }
