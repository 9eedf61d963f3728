"""One process or many: training on several processors, GPUs or machines through Hugging Face `accelerate`.

    accelerate launch --num_processes 2 -m scoreinv train images.h5 --out runs/mine

Every process draws the same batch and works on its share of it; gradients are averaged, so that the run is that of one
process up to rounding. The main process alone validates, saves and prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Processes:
    """This process among those of a run.

    Attributes:
        device: where it computes.
        rank: its number, from 0.
        count: how many there are.
        wrap: makes a network whose gradients are averaged over all processes.
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, batch: Tensor) -> Tensor:
        """Its share of a batch that every process holds, on its device.

        Raises:
            ValueError: the batch cannot be shared out equally.
        """
        if len(batch) % self.count:
            raise ValueError(
                f"a batch of {len(batch)} cannot be shared by {self.count} processes; "
                f"make batch_size (also that of whole images) a multiple of {self.count}"
            )
        return batch[self.rank :: self.count].to(self.device)

    def shared(self, network: nn.Module) -> Any:
        """The network, called as this process should call it in training."""
        return self.wrap(network)


ALONE = Processes(torch.device("cpu"))


def processes(device: str) -> Processes:
    """Those of `accelerate launch` where the run was started by it, one process otherwise.

    Args:
        device: of a single process; `accelerate` chooses its own.

    Raises:
        ValueError: started by `accelerate launch`, but `accelerate` is not installed here.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes(torch.device(device))
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ValueError("several processes need accelerate: pip install 'scoreinv[accelerate]'") from error
    accelerator = Accelerator(cpu=device == "cpu")
    return Processes(
        accelerator.device, accelerator.process_index, accelerator.num_processes, accelerator.prepare_model
    )
