"""Files that look like upscalers to whoever reads their headers, as the front does; no model could be made of them."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write_upscaler(folder: Path, name: str, scale: int) -> Path:
    """Real-ESRGAN's names and shapes. scale: 1, 2, 4 or 8."""
    shapes = {"conv_first": (8, 3, 3, 3), "body.0.rdb1.conv1": (4, 8, 3, 3), "conv_last": (3, 8, 3, 3)}
    shapes |= {f"conv_up{number}": (8, 8, 3, 3) for number in range(1, scale.bit_length())}
    file = folder / f"{name}.safetensors"
    save_file({f"{stem}.weight": np.zeros(shape, np.float32) for stem, shape in shapes.items()}, file)
    return file
