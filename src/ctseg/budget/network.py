"""What a forward pass takes in memory, found without running it: on tensors that have a shape and no voxels."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveBytes(TorchDispatchMode):
    """Follows which results of operations are still needed, and how many bytes they are at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def activation_bytes(network: nn.Module, shape: Sequence[int]) -> tuple[int, int]:
    """Return the most bytes that the results of a forward pass take together in float32, and the answer's channels.

    Half precision takes less. What an operation needs while it runs (a convolution that sorts its input anew) is not
    counted.

    Args:
        network: it is not run and not moved.
        shape: of its input, (B, C, ...).
    """
    state = {
        name: torch.empty_like(value, device="meta")
        for name, value in (*network.named_parameters(), *network.named_buffers())
    }
    image = torch.empty(tuple(shape), device="meta")
    with torch.no_grad(), _LiveBytes() as live:
        answer = functional_call(network, state, (image,))
    return live.peak, int(answer.shape[1])
