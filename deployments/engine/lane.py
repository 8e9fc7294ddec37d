"""One image in flight: latents, history, step, conditioning, random state.

A lane knows its own sampler table and nothing of the UNet or of the lanes beside it.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from deployments.engine.batcher import BatchKey
from deployments.engine.request import Conditioning, DenoiseRequest, Event, Priority
from deployments.engine.samplers import SamplerStep, SamplerTable

Sink = Callable[[Event | Exception], None]


@dataclass(frozen=True, slots=True)
class LaneConditioning:
    """Conditions on the device, a row each: the prompt's and, with guidance, the negative prompt's after it.

    hidden_states: (rows, tokens, channels), the UNet's dtype.
    pooled: (rows, channels) and time_ids: (rows, 5 or 6), SDXL only.
    """

    hidden_states: torch.Tensor
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None


@dataclass(slots=True, eq=False)
class Lane:
    """The state of one DenoiseRequest in the engine.

    latents: (channels, height, width), float32, on the device, as the scheduler holds them (not scaled for the
        model). past_samples, past_outputs: what the sampler looks back on, newest first.
    step: the next entry of the table.
    """

    request: DenoiseRequest
    text: Conditioning
    key: BatchKey
    arrival: int
    submitted: float
    sink: Sink
    table: SamplerTable | None = None
    conditioning: LaneConditioning | None = None
    latents: torch.Tensor | None = None
    generator: torch.Generator | None = None
    past_samples: deque[torch.Tensor] = field(default_factory=deque)
    past_outputs: deque[torch.Tensor] = field(default_factory=deque)
    step: int = 0
    admitted: float | None = None
    last_progress: float = 0.0
    _drawn: list[torch.Tensor] | None = None

    @property
    def rows(self) -> int:
        """UNet rows a step: two with guidance, else one."""
        return 1 if self.text.negative is None else 2

    @property
    def priority(self) -> Priority:
        """The request's priority."""
        return self.request.priority

    @property
    def tenant(self) -> str:
        """Whose time the lane uses."""
        return self.request.tenant

    @property
    def deadline(self) -> float:
        """Monotonic time after which the lane fails."""
        timeout = self.request.timeout_s
        return float("inf") if timeout is None else self.submitted + timeout

    @property
    def current(self) -> SamplerStep:
        """The step to take next."""
        assert self.table is not None
        return self.table.steps[self.step]

    @property
    def finished(self) -> bool:
        """Every step is taken."""
        return self.table is not None and self.step == len(self.table.steps)

    def start(
        self,
        table: SamplerTable,
        conditioning: LaneConditioning,
        latents: torch.Tensor,
        generator: torch.Generator,
    ) -> None:
        """Give the lane its state on the device; `latents` as the first step needs them."""
        self.admitted = time.monotonic()
        self.table, self.conditioning, self.latents, self.generator = table, conditioning, latents, generator
        self.past_samples = deque(maxlen=table.past_samples)
        self.past_outputs = deque(maxlen=table.past_outputs)

    def terms(self, output: torch.Tensor) -> list[tuple[float, torch.Tensor]]:
        """(coefficient, tensor) pairs whose sum is the next latents, `output` being this step's model output.

        The noise is drawn once a step, also when the step is tried again.
        """
        assert self.latents is not None and self.generator is not None
        step = self.current
        if self._drawn is None:
            self._drawn = [
                torch.randn(self.latents.shape, generator=self.generator).to(self.latents.device)
                for _ in step.noises
            ]
        return [
            *zip(step.samples, (self.latents, *self.past_samples), strict=False),
            *zip(step.outputs, (output, *self.past_outputs), strict=False),
            *zip(step.noises, self._drawn, strict=True),
        ]

    def advance(self, latents: torch.Tensor, output: torch.Tensor) -> None:
        """Take the step: `latents` are the next ones, `output` the model output that led there."""
        assert self.latents is not None
        self.past_samples.appendleft(self.latents)
        self.past_outputs.appendleft(output)
        self.latents = latents
        self._drawn = None
        self.step += 1
