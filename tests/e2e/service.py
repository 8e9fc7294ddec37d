"""The service under test: serve_config.cluster.yaml's graph with other checkpoints."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.replica import StageDescription
from serve_app.config.check import check_config
from serve_app.config.settings import Settings

ROOT = Path(__file__).parents[2]

STAGES = {
    "text_encoder": "TextEncoder",
    "sd15": "SD15",
    "sdxl_base": "SDXLBase",
    "sdxl_refiner": "SDXLRefiner",
    "nsfw_classifier": "NSFWClassifier",
}

TINY_LIMITS = {
    "steps": {"min": 1, "max": 50},
    "guidance_scale": {"min": 1, "max": 20},
    "width": {"min": 64, "max": 256},
    "height": {"min": 64, "max": 256},
}
TINY_DEFAULTS = {"steps": 4, "guidance_scale": 5.0, "width": 64, "height": 64, "sampler": "euler"}
# what an engine needs on a test machine, whatever a shipped configuration says of real GPUs
TINY_ENGINE = {"cpu_threads": 1, "progress_interval_s": 0.0}


@dataclass(frozen=True, slots=True)
class Service:
    """url: where it listens. app: its name in Serve. settings: what it was built from. folder: of its data.

    placed: the stages as they were at the start, by their key in the settings; tests kill replicas, and where the next
    one goes is Ray's choice.
    """

    url: str
    app: str
    settings: Settings
    folder: Path
    placed: dict[str, StageDescription]


def cluster_settings(models: dict[str, Any], classifier: str, ip_adapters: Path, folder: Path) -> Settings:
    """serve_config.cluster.yaml with other checkpoints, on whatever device there is, its data in `folder`.

    ip_adapters: a folder of them with their image encoder. `folder` also holds the VAEs and the detectors.
    """
    values = check_config(ROOT / "serve_config.cluster.yaml").applications[0].args.model_dump(mode="json")
    for name, stage in values["stages"].items():
        if "engine" in stage:
            stage["engine"] = {**TINY_ENGINE, "resident_checkpoints": stage["engine"]["resident_checkpoints"]}
        elif "device" in stage:
            stage["device"] = {"cpu_threads": 1}
        if name != "router":
            stage["health_check_period_s"] = 0.5
        if stage.get("autoscaling"):
            # a stage that grows takes this machine's cores, and the GPU that another's killed replica comes back to
            stage["autoscaling"]["max_replicas"] = 1
    # a busy test machine lets requests that are sent at once arrive farther apart than a cluster does
    values["stages"]["text_encoder"] |= {"max_batch": 8, "burst_wait_s": 0.3}
    values["device"] = "auto"
    values["controlnets"] = {"folder": "package:demo_models/demo-controlnets", "resident_mib": 64}
    values["ip_adapters"] = {"folder": str(ip_adapters), "encoders": [str(ip_adapters / "image_encoder")]}
    for weights in ("vaes", "detectors"):
        values[weights] = {"folder": str(folder / weights)}
    values["models"] = models
    values["default_model"] = next(iter(models))
    values["safety"] |= {"classifier": classifier, "mode": "flag"}  # an untrained one flags what it likes
    values["jobs"] |= {"heartbeat_s": 0.5, "lease_s": 5.0}  # a dead router's jobs are taken up soon
    values["jobs"]["database_url"] = f"sqlite+aiosqlite:///{folder}/jobs.db"
    values["images"]["url"] = str(folder / "images")
    (folder / "models").mkdir()
    values["registry"]["folders"] = [str(folder / "models")]
    values["provenance"] = {"c2pa": {"development_folder": str(folder / "provenance")}}
    return Settings.model_validate(values)
