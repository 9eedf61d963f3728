"""Weights in files of others: tensors are read, nothing in a file is executed."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

_OPEN = "import torch; x = torch.load('{name}', weights_only=False)"
_OPEN_PKL = "import pathlib, pickle; x = pickle.loads(pathlib.Path('{name}').read_bytes())"
_SAVE = (
    "from safetensors.torch import save_file; "
    "save_file({{k: v.contiguous().clone() for k, v in x.state_dict().items()}}, '{stem}.safetensors')"
)


def load_torch_weights(path: str | Path) -> Any:
    """What a .safetensors file or a checkpoint of torch.save holds, on the CPU: tensors in plain containers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or to open it means to run code that it names.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)  # it is read, or it is refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        convert = f"{_OPEN_PKL if path.suffix == '.pkl' else _OPEN}; {_SAVE}".format(name=path.name, stem=path.stem)
        raise ValueError(
            f"{path}: is a pickle with more than tensors in it, which can run code when opened, and is not read. Where you "
            f'trust it, convert it (x: the network, or the entry that holds it): python -c "{convert}"'
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: holds no readable weights: {error}") from error
