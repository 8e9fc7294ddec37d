"""IP-Adapters (arXiv:2308.06721): the tokens that they make of a reference picture, and what these add to a UNet.

An IP-Adapter has keys and values of its own for each cross-attention of a UNet. The UNet's queries attend to a
picture's tokens by them, and what comes out, times the reference's scale, is added before the layer's last projection.
Rows without a reference have the scale 0, so that a forward has the same shapes, and a lane the same bits, whichever
of its neighbours are shown a picture.
"""

import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.models.attention_processor import Attention
from torch.nn.functional import linear, scaled_dot_product_attention

from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.checkpoints.tensors import check_finite, read_tensors
from deployments.engine.checkpoints.weight_folder import files_state
from deployments.engine.conditioning.ip_adapter_files import (
    ATTENTION,
    PROJECTION,
    IpAdapterFile,
    IpAdapterFolder,
    IpAdapterSource,
)
from deployments.engine.conditioning.protocol import ConditionedRow, LaneCondition, Timeline
from deployments.engine.config import EngineSettings
from deployments.engine.device import Device
from deployments.engine.errors import CheckpointError, DoesNotFit, InvalidRequest
from deployments.engine.memory.weight_pool import DeviceWeights, WeightPool
from deployments.engine.row_threads import rows_here
from deployments.engine.types import (
    MASKED,
    MAX_REFERENCES,
    Conditioning,
    DenoiseRequest,
    Pixels,
    Reference,
    ReferenceFeatures,
)
from deployments.engine.unet import UnetInputs

_MOST_TOKENS = 257  # that any kind makes of a picture: "full face" keeps CLIP's patches and its class token


class IpAdapter:
    """An IP-Adapter on the device, as DeviceWeights."""

    def __init__(
        self, hash_: str, projection: torch.nn.Module, attention: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        """Wrap its weights.

        Args:
            hash_: SHA-256 (hex) of its file.
            projection: from CLIP's features to tokens, on the device.
            attention: matrices of keys and values, (channels of a layer, channels of a token), of each
                cross-attention in the order of the UNet's `attn_processors`.
        """
        self.hash = hash_
        self.attention = attention
        self._projection = projection
        parameters = [*projection.parameters(), *(matrix for pair in attention for matrix in pair)]
        self.bytes = sum(tensor.nbytes for tensor in parameters)

    def tokens(self, features: ReferenceFeatures) -> torch.Tensor:
        """The tokens of a picture, then those of what stands for none: (2, tokens, channels), in the model's dtype."""
        matrix = self.attention[0][0]
        seen = torch.from_numpy(np.stack([features.positive, features.negative])).to(matrix.device, matrix.dtype)
        projected: torch.Tensor = self._projection(seen)
        return projected


@dataclass(frozen=True, slots=True, eq=False)
class LaneReference(LaneCondition):
    """A picture that a lane is shown.

    Attributes:
        layers: the cross-attentions of the lane's UNet.
        tokens: as `IpAdapter.tokens` returns them.
        scale: factor of what its attention adds.
        mask: (1, height, width), float32, 1 where the picture is shown; None shows it everywhere.
    """

    weights: IpAdapter
    span: range
    origin: tuple[object, ...]
    layers: Sequence[Attention]
    tokens: torch.Tensor
    scale: float
    mask: torch.Tensor | None

    @classmethod
    def lay_out(
        cls, rows: "Sequence[ConditionedRow[LaneReference]]", bucket: int, *, pinned: bool
    ) -> "BatchReferences":
        """As LaneCondition.lay_out; every row of the bucket is computed, whether pinned or not."""
        passes: dict[tuple[str, bool, int], dict[int, ConditionedRow[LaneReference]]] = {}
        for row in rows:
            kind = row.condition.weights.hash, row.condition.mask is not None
            number = 0
            while row.index in passes.setdefault((*kind, number), {}):
                number += 1
            passes[*kind, number][row.index] = row
        # an order that doesn't depend on the batch, because sums depend on theirs
        return BatchReferences(
            rows[0].condition.layers, tuple(ShownRows.of(passes[key], bucket) for key in sorted(passes))
        )


@dataclass(frozen=True, slots=True)
class ShownRows:
    """One picture for each row of a bucket, by one IP-Adapter.

    Attributes:
        tokens: (bucket, tokens, channels), zeros for rows that are shown none.
        scales: (bucket, 1, 1), likewise.
        masks: (bucket, height, width), float32, or None.
    """

    adapter: IpAdapter
    tokens: torch.Tensor
    scales: torch.Tensor
    masks: torch.Tensor | None

    @classmethod
    def of(cls, rows: Mapping[int, ConditionedRow[LaneReference]], bucket: int) -> "ShownRows":
        """From at most one condition for each index."""
        one = next(iter(rows.values())).condition
        tokens = one.tokens.new_zeros(bucket, *one.tokens.shape[1:])
        scales = torch.zeros(bucket, 1, 1, dtype=torch.float32)
        masks = None if one.mask is None else one.mask.new_zeros(bucket, *one.mask.shape[1:])
        for index, row in rows.items():
            tokens[index] = row.condition.tokens[int(row.negative)]
            scales[index] = row.condition.scale
            if masks is not None and row.condition.mask is not None:
                masks[index] = row.condition.mask[0]
        return cls(one.weights, tokens, scales.to(tokens.device, tokens.dtype), masks)

    def attend(self, layer: int, heads: int, queries: torch.Tensor, rows: slice) -> torch.Tensor:
        """What the pictures add to a layer's attention for some rows of the bucket.

        Args:
            layer: its index among the UNet's cross-attentions.
            heads: of the layer.
            queries: (rows, queries, channels).
            rows: which rows these are.

        Returns:
            (rows, queries, channels).
        """

        def by_head(states: torch.Tensor) -> torch.Tensor:
            split: torch.Tensor = states.unflatten(-1, (heads, -1)).transpose(1, 2)
            return split

        of_keys, of_values = self.adapter.attention[layer]
        tokens = self.tokens[rows]
        attended = scaled_dot_product_attention(
            by_head(queries), by_head(linear(tokens, of_keys)), by_head(linear(tokens, of_values))
        )
        added: torch.Tensor = attended.transpose(1, 2).flatten(2) * self.scales[rows]
        if self.masks is not None:
            added = added * _downsampled(self.masks[rows], queries)
        return added


@dataclass(frozen=True, slots=True)
class BatchReferences:
    """All pictures that a batch is shown; also its contribution to a step, which doesn't depend on the step."""

    layers: Sequence[Attention]
    passes: tuple[ShownRows, ...]

    def contribution(self, inputs: UnetInputs) -> "BatchReferences":
        """As BatchCondition.contribution."""
        return self

    def arguments(self, rows: slice) -> Mapping[str, Any]:
        """As StepContribution.arguments: none."""
        return {}

    def hooked(self) -> AbstractContextManager[None]:
        """As StepContribution.hooked."""
        return self._hooked()

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        here = threading.local()  # the queries of the layer that a thread computes
        handles = []
        for index, layer in enumerate(self.layers):
            handles.append(layer.to_q.register_forward_hook(partial(_keep_queries, here)))
            add = partial(self._add, here, index, layer.heads)
            handles.append(layer.to_out[0].register_forward_pre_hook(add))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(
        self, here: Any, index: int, heads: int, _module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        states, *others = arguments
        rows = rows_here()
        for shown in self.passes:
            states = states + shown.attend(index, heads, here.queries, rows)
        del here.queries
        return states, *others


def _keep_queries(here: Any, _module: torch.nn.Module, _arguments: object, queries: torch.Tensor) -> None:
    here.queries = queries


def _downsampled(masks: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Masks as a layer sees them: (rows, queries, channels), as diffusers' IP-Adapter processors scale them."""
    _, number, channels = queries.shape
    scaled = [IPAdapterMaskProcessor.downsample(mask[None], 1, number, channels) for mask in masks]
    return torch.cat(scaled).to(queries.dtype)


class References:
    """The Conditioner of reference pictures."""

    def __init__(self, room: int, device: Device, settings: EngineSettings) -> None:
        """`room`: bytes of the device for all IP-Adapters' weights."""
        self._pool: WeightPool[IpAdapter] = WeightPool(room)
        self._device = device

    def has_room(self, files: Sequence[IpAdapterFile], in_use: Collection[DeviceWeights]) -> bool:
        """As Conditioner's."""
        return self._pool.has_room({file.hash: self._bytes(file) for file in files}, in_use)

    def prepare(
        self,
        request: DenoiseRequest,
        text: Conditioning,
        files: Sequence[IpAdapterFile],
        checkpoint: DenoiserWeights,
        timeline: Timeline,
        in_use: Collection[DeviceWeights],
    ) -> list[LaneReference]:
        """As Conditioner's."""
        if len(text.references) != len(files):
            raise InvalidRequest(
                f"{len(files)} references came with the features of {len(text.references)} pictures", "references"
            )
        needed = sum({file.hash: self._bytes(file) for file in files}.values())
        if needed > self._pool.room:
            raise DoesNotFit(
                f"the IP-Adapters {', '.join(repr(file.name) for file in files)} take {needed >> 20} MiB together, "
                f"there is room for {self._pool.room >> 20}",
                "references",
            )
        kept = {weights.hash for weights in in_use} | {file.hash for file in files}
        layers = _cross_attentions(checkpoint.unet)
        prepared = []
        for reference, file, features in zip(request.references, files, text.references, strict=True):
            _check_mask(reference.mask, (request.height, request.width))
            _check_features(file.source, features)
            load = partial(self._load, file, checkpoint.unet)
            adapter = self._pool.get(file.hash, self._bytes(file), load, kept)
            _check_fit(file.name, adapter, layers)
            prepared.append(
                LaneReference(
                    weights=adapter,
                    span=timeline.span(reference.start, reference.end),
                    origin=_origin(adapter, reference, features),
                    layers=layers,
                    tokens=adapter.tokens(features),
                    scale=reference.scale,
                    mask=_weights_of(reference.mask, self._device.torch_device),
                )
            )
        return prepared

    def _bytes(self, file: IpAdapterFile) -> int:
        return file.source.numbers * self._device.dtype.itemsize

    def _load(self, file: IpAdapterFile, unet: UNet2DConditionModel) -> IpAdapter:
        source = file.source
        try:
            if files_state((source.file,)) != source.written:
                raise IpAdapterFolder.refused(file.name, "was changed while the image waited: ask again")
            return _read(file, unet, self._device)
        except (CheckpointError, OSError) as error:
            raise IpAdapterFolder.unreadable(file.name, error, source.file.parent) from None


class ReferenceTrace:
    """The memory of reference pictures, as StepTrace: their attention is smaller than the text's, which is traced."""

    def __repr__(self) -> str:
        return "ReferenceTrace()"

    def model(self, unet: Mapping[str, Any], channels: int, empty: Callable[[Any, Mapping[str, Any]], Any]) -> None:
        """As StepTrace.model: none."""

    def arguments(self, model: None, inputs: UnetInputs) -> Mapping[str, Any]:
        """As StepTrace.arguments: none."""
        return {}

    def lane_numbers(self, unet: Mapping[str, Any]) -> int:
        """As StepTrace.lane_numbers: none for each cell."""
        return 0

    def row_numbers(self, unet: Mapping[str, Any]) -> int:
        """As StepTrace.row_numbers: the tokens."""
        return MAX_REFERENCES * _MOST_TOKENS * int(unet["cross_attention_dim"])


def _cross_attentions(unet: UNet2DConditionModel) -> tuple[Attention, ...]:
    """In the order of `attn_processors`, by which IP-Adapters' files number them."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    return tuple(unet.get_submodule(name) for name in names if name.endswith("attn2"))


def _read(file: IpAdapterFile, unet: UNet2DConditionModel, device: Device) -> IpAdapter:
    """Read an IP-Adapter onto the device. Raises CheckpointError if tensors are missing, left over or not finite."""
    path = file.source.file
    tensors = read_tensors(path)
    of_projection = {
        name.removeprefix(PROJECTION): tensor.clone() for name, tensor in tensors.items() if name.startswith(PROJECTION)
    }
    try:
        projection = unet._convert_ip_adapter_image_proj_to_diffusers(of_projection, low_cpu_mem_usage=False)
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: its {PROJECTION}… aren't those of an IP-Adapter: {error}") from None
    projection = projection.to(device.torch_device, device.dtype).eval().requires_grad_(False)
    check_finite(projection, path)
    numbers = sorted(int(name.split(".")[1]) for name in tensors if name.endswith(".to_k_ip.weight"))
    names = [f"{ATTENTION}{number}.to_{kind}_ip.weight" for number in numbers for kind in "kv"]
    known = {f"{PROJECTION}{name}" for name in of_projection} | set(names)
    if known != tensors.keys():
        name = min(known ^ tensors.keys())
        raise CheckpointError(f"{path}: the tensor {name} is {'unknown' if name in tensors else 'missing'}")
    matrices = [tensors[name].to(device.torch_device, device.dtype, copy=True) for name in names]
    for name, matrix in zip(names, matrices, strict=True):
        if not bool(torch.isfinite(matrix).all()):
            raise CheckpointError(f"{path}: {name} has values that aren't finite numbers")
    return IpAdapter(file.hash, projection, list(zip(matrices[::2], matrices[1::2], strict=True)))


def _check_fit(name: str, adapter: IpAdapter, layers: Sequence[Attention]) -> None:
    """Raise IpAdapterRefused if an IP-Adapter's matrices aren't those of a UNet's cross-attentions."""
    expected = [(layer.to_k.out_features, layer.to_k.in_features) for layer in layers]
    found = [tuple(keys.shape) for keys, _ in adapter.attention]
    if found != expected or found != [tuple(values.shape) for _, values in adapter.attention]:
        raise IpAdapterFolder.refused(
            name,
            f"is for another kind of model: it has {len(found)} cross-attentions, the first of shape {found[0]}, this "
            f"model has {len(expected)}, the first of shape {expected[0]}",
        )


def _check_features(source: IpAdapterSource, features: ReferenceFeatures) -> None:
    for seen in (features.positive, features.negative):
        if seen.ndim != 1 + source.sees_patches or seen.shape[-1] != source.features:
            raise IpAdapterFolder.refused(
                source.name,
                f"takes features of {source.features} channels {'of each patch' if source.sees_patches else 'alone'}, "
                f"the image encoder's have shape {seen.shape}",
            )


def _check_mask(mask: Pixels | None, expected: tuple[int, int]) -> None:
    if mask is not None and (mask.shape != expected or mask.dtype != np.uint8):
        raise InvalidRequest(
            f"a reference's mask is {mask.dtype} {mask.shape}, expected uint8 {expected}", "references"
        )


def _weights_of(mask: Pixels | None, device: torch.device) -> torch.Tensor | None:
    return None if mask is None else torch.from_numpy(mask >= MASKED).to(device, torch.float32)[None]


def _origin(adapter: IpAdapter, reference: Reference, features: ReferenceFeatures) -> tuple[object, ...]:
    seen = hashlib.sha256(features.positive.tobytes()).hexdigest()
    mask = None if reference.mask is None else hashlib.sha256(reference.mask.tobytes()).hexdigest()
    return adapter.hash, seen, reference.scale, reference.start, reference.end, mask
