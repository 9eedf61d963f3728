"""The option `--device`."""

from __future__ import annotations


def check_device(device: str) -> None:
    import torch

    known = ["cpu", "cuda", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    if device not in known:
        raise ValueError(f"--device {device!r}: expected one of {', '.join(known)}")
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: this torch {torch.__version__} finds no CUDA device; use --device cpu")
