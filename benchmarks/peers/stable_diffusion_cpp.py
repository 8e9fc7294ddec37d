"""stable-diffusion.cpp by its Python package, which compiles it for this machine, behind the thinnest server."""

from benchmarks.peers.bare import send
from benchmarks.peers.contender import APPS, Contender, PictureClient, Place
from benchmarks.peers.requests import REAL


def _command(place: Place) -> list[str]:
    return [str(place.bin / "python"), "-m", f"{APPS}.stable_diffusion_cpp", str(place.checkpoint), str(place.port)]


REAL_STABLE_DIFFUSION_CPP = Contender(
    name="real-sdcpp",
    what="stable-diffusion.cpp, one picture after the other",
    checkpoint="real",
    like=REAL,
    command=_command,
    client=lambda http: PictureClient(http, send),
    health="/",
    packages=("stable-diffusion-cpp-python==0.4.7",),
)
