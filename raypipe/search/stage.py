"""The search of one component: what all its trials share."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypipe import checkpoint
from raypipe.config import Component, Experiment, SearchStage
from raypipe.search.configured import trial_config
from raypipe.search.rungs import stage_rungs
from raypipe.search.schedulers.pbt import Exploit
from raypipe.workspace.layout import ParentModels, Workspace


@dataclass(frozen=True)
class Stage:
    """The search of one component.

    experiment: settings that the trials share. flow, denoiser: names of the models of earlier stages that the trials
    use. warm_start: folder of a finished experiment whose best points are tried early. wandb: whether trials are logged
    to Weights & Biases.
    """

    experiment: Experiment
    workspace: Workspace
    component: Component
    flow: str | None = None
    denoiser: str | None = None
    warm_start: Path | None = None
    wandb: bool = False

    @property
    def settings(self) -> SearchStage:
        """The config section of the stage."""
        return self.experiment.search.stages[self.component]

    def configure(self, values: Mapping[str, Any]) -> Experiment:
        """The experiment of a trial with these values, by dotted name."""
        return trial_config(self.experiment, self.component, values)

    def parents(self, experiment: Experiment) -> ParentModels:
        """Folders of the flow and the denoiser that a trial uses."""
        flow = experiment.train.flow or self.flow
        return ParentModels(
            None if flow is None else self.workspace.run("flow", flow),
            None if self.denoiser is None else self.workspace.run("denoiser", self.denoiser),
        )

    @property
    def rungs(self) -> list[int]:
        """Training steps after which trials are scored, the last at the end."""
        return stage_rungs(self.experiment, self.component)

    def take_over(self, exploit: Exploit) -> None:
        """Replace a trial's model folder by a copy of the donor's: weights, optimizer and step.

        The folder also stores the new values; the study and Tune still hold the old ones.
        """
        donor, folder = (self.workspace.run(self.component, name) for name in (exploit.donor, exploit.trial))
        taken = {"values": dict(exploit.values), "exploited": {"trial": exploit.donor, "step": exploit.step}}
        checkpoint.copy_component(donor, folder, extra=checkpoint.read_meta(folder).extra | taken)
