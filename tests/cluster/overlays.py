"""What tests change of the shipped configuration, beside overlay.laptop.yaml: how soon it lets go, and its rates."""

from typing import Any

PATIENCE_S = 400.0  # a busy machine is slow, not broken
BUCKET_PORT = 5000  # inside of the cluster's namespaces
STAGES = ("text_encoder", "sd15", "nsfw_classifier", "sdxl_base", "sdxl_refiner")


def scaling(fewest: int = 0, downscale_delay_s: float = 20.0, **of_stages: dict[str, int]) -> dict[str, Any]:
    """Autoscaling as shipped, but for the fewest replicas and the delay before a stage lets one go.

    Args:
        of_stages: further keys of single stages' `autoscaling`.
    """
    common = {"min_replicas": fewest, "downscale_delay_s": downscale_delay_s}
    return {
        "stages": {stage: {"autoscaling": {**common, **of_stages.get(stage, {})}} for stage in STAGES},
        "access": {"requests": None, "generations": None},
    }
