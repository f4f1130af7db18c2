"""Several processes of `torchrun` share a list of experiments; without it the one process takes all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

Item = TypeVar("Item")
_LONGEST = timedelta(days=30)  # that one process may train while the others wait for it


@dataclass(frozen=True)
class Share:
    """Which part of the work is this process's.

    Attributes:
        rank: of this process, from 0 on.
        world: number of processes.
        device: "cuda:N" by the rank on this machine; None without torchrun or without a GPU.
    """

    rank: int = 0
    world: int = 1
    device: str | None = None

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Return this process's items: every `world`-th, so that neighbours of unlike cost are spread."""
        return list(items[self.rank :: self.world])

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()


def join() -> Share:
    """Join the other processes of `torchrun`, if it started this one.

    The group only waits for each other, over gloo: each experiment trains in a process of its own.
    """
    import torch
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_torchelastic_launched():
        return Share()
    dist.init_process_group("gloo", timeout=_LONGEST)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = f"cuda:{dist.get_node_local_rank(0) % gpus}" if gpus else None
    return Share(dist.get_rank(), dist.get_world_size(), device)


def leave(share: Share) -> None:
    """Wait for the others and leave the group."""
    if share.world > 1:
        import torch.distributed as dist

        share.wait()
        dist.destroy_process_group()
