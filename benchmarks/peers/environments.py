"""An environment for each contender: its own packages, and Darkroom's torch, diffusers and all else that is there.

The environments lie in a cache folder. Each has a `.pth` file with the site-packages of the Python that runs this, so
nothing is downloaded twice and every contender computes with the same torch. What a contender needs in another
release goes into its own environment, which is looked at first.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

from rich.console import Console

from benchmarks.peers.contender import Contender

_INSTALLED = "installed.txt"  # what the environment was made of, written last

console = Console(stderr=True)


def scripts_of(contender: Contender, cache: Path) -> Path:
    """The scripts of a contender's environment, which is made if needed; Darkroom's own for one without packages.

    Raises subprocess.CalledProcessError if it can't be installed; pip has said why.
    """
    if not contender.packages:
        return Path(sysconfig.get_path("scripts"))
    folder = cache / contender.name
    wanted = "\n".join((sysconfig.get_path("purelib"), *contender.packages))
    done = folder / _INSTALLED
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        console.print(f"{contender.name}: installing {', '.join(contender.packages)} into {folder}", highlight=False)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        python = folder / "bin" / "python"
        own = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        (folder / own / "darkroom.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *contender.packages], check=True)
        done.write_text(wanted, encoding="utf-8")
    return folder / "bin"
