"""What `--dry-run` prints: tables of what would be done, how long it takes and what it needs, and what does not fit."""

from collections.abc import Sequence
from pathlib import Path

from raypipe.common import terminal
from raypipe.report.outlook import duration
from raypipe.search.dry_run import Plan, Training
from raypipe.search.room import disk_needs, gigabytes, misfits

HEADER = (
    *("", "trials", "of steps", "refits", "of steps", "batch", "parameters", "memory"),
    *("s/step", "search", "refit"),
)


def plan_text(plan: Plan, storage: Path) -> str:
    """The plan of a search, an evaluation or a training. storage: the storage root."""
    lines = []
    if plan.trainings:
        lines += [terminal.table([_row(training) for training in plan.trainings], HEADER), ""]
    others = {name: "not measured" if s is None else duration(s) for name, s in plan.other.items()}
    parts = [f"{name} {text}" for name, text in others.items()]
    whole = "unknown, as not everything was measured" if plan.seconds is None else f"about {duration(plan.seconds)}"
    together = f", {plan.places} trial{'s' * (plan.places > 1)} at a time" if plan.places else ""
    lines.append(f"time     {whole}{together}" + (f"; of it {', '.join(parts)}" if parts else ""))
    needs = disk_needs(plan)
    if needs:
        listed = ", ".join(f"{name} {gigabytes(size)}" for name, size in needs.items())
        lines.append(f"disk     {gigabytes(sum(needs.values()))}: {listed}")
    for training in plan.trainings:
        reason = training.rehearsed.reason
        if reason is not None and not training.rehearsed.no_memory:
            lines.append(f"not measured: {training.name}: {reason}")
    lines += [f"does not fit: {line}" for line in misfits(plan, storage)]
    return "\n".join(lines)


def _row(training: Training) -> Sequence[object]:
    measured = training.measured
    sizes = [f"{count:,}" for count in training.parameters]
    step = memory = None
    if measured is not None:
        steps = measured.worker if training.trials == 0 else measured.trial
        step = " / ".join(f"{seconds:.3g}" for seconds in dict.fromkeys((steps.velocity, steps.scored)))
        memory = f"{measured.memory / 2**20:,.0f} MiB"
    return [
        training.name,
        training.trials or None,
        training.steps or None,
        training.refits or None,
        training.refit_steps or None,
        training.batch,
        sizes[0] if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}",
        memory,
        step,
        _duration(training.search),
        _duration(training.refit),
    ]


def _duration(seconds: float | None) -> str | None:
    return None if not seconds else duration(seconds)
