"""One process or many: training on several processors, GPUs or machines through Hugging Face `accelerate`.

    accelerate launch --num_processes 4 -m scoreinv train images.h5 --out runs/mine        (GPUs; `accelerate config` once)
    torchrun --nproc_per_node 2 -m scoreinv train images.h5 --out runs/mine                 (processors, or GPUs)

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
        agree: what the main process says to a question that each might answer differently, such as whether time is up.
        finish: waits until all are done and parts from them; a process that just leaves can take its threads' runtime down.
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network
    agree: Callable[[bool], bool] = lambda answer: answer
    finish: Callable[[], None] = lambda: None

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


def is_main() -> bool:
    """Whether this process is the one that prints, asked before anything is set up."""
    return os.environ.get("RANK", "0") == "0"


ALONE = Processes(torch.device("cpu"))


def processes(device: str) -> Processes:
    """Those of `accelerate launch` or `torchrun` where one of them started the run, one process otherwise.

    Args:
        device: of a single process; `accelerate` chooses its own.

    Raises:
        ValueError: started as one of several, but `accelerate` is not installed here.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes(torch.device(device))
    try:
        from accelerate import Accelerator
        from accelerate.utils import broadcast
    except ImportError as error:
        raise ValueError("several processes need accelerate: pip install 'scoreinv[accelerate]'") from error
    accelerator = Accelerator(cpu=device == "cpu")

    def agree(answer: bool) -> bool:
        return bool(broadcast(torch.tensor(int(answer), device=accelerator.device)))

    def finish() -> None:
        accelerator.wait_for_everyone()
        accelerator.end_training()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    return Processes(
        accelerator.device,
        accelerator.process_index,
        accelerator.num_processes,
        accelerator.prepare_model,
        agree,
        finish,
    )
