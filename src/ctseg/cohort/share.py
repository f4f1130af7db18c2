"""Which part of a cohort a process takes, when several processes or machines share it.

Either said ("2/8": the second of eight, for a job array or by hand), or asked of torchrun, whose store the processes
also tell each other through how they ended. The store is enough: nothing is computed together, so no process group is
made, and a slow process holds up no other.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from ctseg.errors import ConfigError

TORCHRUN = "torchrun"
_Item = TypeVar("_Item")
# The processes end days apart at most: a long cohort on machines of different speed.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Share:
    """A part of a whole.

    Attributes:
        index: which part, from 0.
        count: how many parts.
        local_index: which of the processes of this machine.
        local_count: how many processes share this machine.
        store: torchrun's, else None.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1
    store: Any = None

    def of(self, items: Sequence[_Item]) -> list[_Item]:
        """Return every `count`-th item from `index` on: together the parts are all items, each once."""
        return list(items[self.index :: self.count])

    def worst(self, code: int) -> int:
        """Return the highest exit code of all parts, when all have ended.

        torchrun ends all processes when one of them fails, so none may say so before the others are done.
        """
        if self.store is None:
            return code
        self.store.set(f"code/{self.index}", str(code))
        codes = [f"code/{index}" for index in range(self.count)]
        self.store.wait(codes, _PATIENCE)
        worst = max(int(self.store.get(key)) for key in codes)
        self.store.set(f"read/{self.index}", "1")
        self.store.wait([f"read/{index}" for index in range(self.count)], _PATIENCE)
        return worst


def parse_share(text: str) -> Share | None:
    """Return the share that is said, None for torchrun's.

    Raises:
        ConfigError: neither "torchrun" nor a part such as "2/8".
    """
    if text == TORCHRUN:
        return None
    said = re.fullmatch(r"(\d+)/(\d+)", text)
    if not said or not 1 <= int(said[1]) <= int(said[2]):
        raise ConfigError(f"the share {text!r} is not known: expected {TORCHRUN}, or a part such as 1/4, 2/4, 3/4, 4/4")
    return Share(int(said[1]) - 1, int(said[2]))


def torchrun_share() -> Share:
    """Return the share of this process among those that torchrun started.

    Raises:
        ConfigError: torchrun did not start it.
    """
    import torch.distributed as dist

    if not dist.is_torchelastic_launched():
        raise ConfigError(
            f"--share {TORCHRUN} is for processes that torchrun starts: "
            "torchrun --nproc_per_node 2 -m ctseg segment FOLDER --workers 1 --share torchrun -o OUT"
        )
    store, rank, count = next(dist.rendezvous("env://"))
    store.set(f"machine/{rank}", socket.gethostname())
    store.wait([f"machine/{index}" for index in range(count)], _PATIENCE)
    machines = [store.get(f"machine/{index}") for index in range(count)]
    same = [index for index, machine in enumerate(machines) if machine == machines[rank]]
    return Share(rank, count, same.index(rank), len(same), store)
