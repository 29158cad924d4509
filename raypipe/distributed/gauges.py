"""The Ray metric of all that trains, which Ray's dashboard and Prometheus show: steps per second."""

from ray.util.metrics import Gauge

TAGS = ("experiment", "stage")


def speed_gauge(experiment: str, stage: str) -> Gauge:
    """A gauge of training steps per second. This process must be connected to Ray.

    experiment: name. stage: component, or `autoencoder`.
    """
    text = "Training steps per second of the running trials of a stage, or of its other trainings."
    gauge = Gauge("raypipe_steps_per_second", text, TAGS)
    gauge.set_default_tags({"experiment": experiment, "stage": stage})
    return gauge
