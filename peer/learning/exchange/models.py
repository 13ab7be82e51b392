"""The `models` exchange: a payload is the whole model, D little-endian numbers and nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from murmurate.peer.errors import RemoteError
from murmurate.peer.learning.flat import is_finite
from murmurate.peer.protocol.events import Payload

# The wire's dtype, and the integers of the same width through which numpy (which knows no bfloat16) moves the bits.
DTYPES = {
    "float32": (torch.float32, torch.int32, "<i4"),
    "float16": (torch.float16, torch.int16, "<i2"),
    "bfloat16": (torch.bfloat16, torch.int16, "<i2"),
}


class Models:
    """Payloads of `parameters` numbers in `dtype`: float32, float16 or bfloat16."""

    def __init__(self, parameters: int, dtype: str) -> None:
        self._parameters = parameters
        self._dtype, self._bits, self._wire = DTYPES[dtype]
        self.payload_bytes = parameters * self._dtype.itemsize

    def pack(self, flat_D: Tensor) -> Payload:
        """The model as bytes. Finite values beyond a 16-bit format's range become its largest value, not infinity."""
        assert flat_D.numel() == self._parameters
        if self._dtype != flat_D.dtype:
            largest = torch.finfo(self._dtype).max
            flat_D = flat_D.clamp(-largest, largest).to(self._dtype)
        return flat_D.view(self._bits).cpu().numpy().astype(self._wire, copy=False).tobytes()

    def unpack(self, payload: Payload, out_D: Tensor) -> None:
        """Write a model into `out_D`. Raises RemoteError for a wrong length or a value that is not finite."""
        size = memoryview(payload).nbytes
        if size != self.payload_bytes:
            raise RemoteError(f"a payload of {size} bytes, where a model of this swarm has {self.payload_bytes}")
        direct = out_D.is_cpu and out_D.dtype == self._dtype
        bits = out_D.view(self._bits) if direct else torch.empty(self._parameters, dtype=self._bits)
        # Through numpy: torch.frombuffer warns about read-only buffers, and the bits have to be copied once anyway.
        bits.numpy()[:] = np.frombuffer(payload, self._wire)
        if not direct:
            out_D.copy_(bits.view(self._dtype))
        if not is_finite(out_D):
            raise RemoteError("a model with values that are not finite")
