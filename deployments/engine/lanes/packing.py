"""Plain fields and arrays as bytes and back: one safetensors file in memory, so that nothing stored is a pickle.

Knows nothing of what the fields mean; whoever unpacks them checks that.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

_FIELDS = "fields"  # the array that holds the fields as JSON


def pack(fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """fields: as JSON can hold them. arrays: of any shape, by names other than "fields"."""
    described = np.frombuffer(json.dumps(fields).encode(), np.uint8)
    return save({**{name: np.ascontiguousarray(array) for name, array in arrays.items()}, _FIELDS: described})


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What was packed, fields and arrays. Raises ValueError for bytes that `pack` didn't make."""
    try:
        arrays = load(data)
        fields = json.loads(arrays.pop(_FIELDS).tobytes())
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"no packed fields and arrays: {error}") from None
    return fields, arrays
