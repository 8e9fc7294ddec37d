"""The contenders in the order in which they are measured, and which parts each is measured in."""

from collections.abc import Mapping

from benchmarks.peers.bare import bare
from benchmarks.peers.bentoml import BENTOML
from benchmarks.peers.contender import Checkpoint, Contender
from benchmarks.peers.darkroom import DARKROOM, REAL_DARKROOM
from benchmarks.peers.litserve import LITSERVE
from benchmarks.peers.ray_serve import RAY_SERVE, RAY_SERVE_BATCH
from benchmarks.peers.results import PartName
from benchmarks.peers.stable_diffusion_cpp import REAL_STABLE_DIFFUSION_CPP

BARE: Mapping[Checkpoint, Contender] = {"demo": bare("bare", "demo"), "real": bare("real-bare", "real")}

_SERVER: tuple[PartName, ...] = (
    "start",
    "picture",
    "throughput",
    "rates",
    "mixed",
    "short",
    "idle",
    "hangup",
    "overload",
    "kill",
)
_FLOOR: tuple[PartName, ...] = ("start", "picture", "throughput", "mixed", "idle")
_REAL: tuple[PartName, ...] = ("start", "picture", "steps", "throughput", "idle")

_LISTED: tuple[tuple[Contender, tuple[PartName, ...]], ...] = (
    (BARE["demo"], _FLOOR),
    (DARKROOM, ("compile", *_SERVER)),
    (LITSERVE, _SERVER),
    (RAY_SERVE, _SERVER),
    (RAY_SERVE_BATCH, _SERVER),
    (BENTOML, _SERVER),
    (BARE["real"], _REAL),
    (REAL_DARKROOM, _REAL),
    (REAL_STABLE_DIFFUSION_CPP, _REAL),
)

# of a service that runs already nothing is started, stopped or killed
RUNNING: tuple[PartName, ...] = ("picture", "throughput", "rates", "short", "hangup", "overload")

CONTENDERS: Mapping[str, Contender] = {contender.name: contender for contender, _ in _LISTED}
PARTS_OF: Mapping[str, tuple[PartName, ...]] = {contender.name: parts for contender, parts in _LISTED}
PART_NAMES: tuple[PartName, ...] = tuple(dict.fromkeys(part for _, parts in _LISTED for part in parts))
