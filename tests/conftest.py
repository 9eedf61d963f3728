"""What several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture
def rng() -> torch.Generator:
    """A source of randomness that is the same in every test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real scans, named by SCOREINV_DATA; without it the test is skipped."""
    name = os.environ.get("SCOREINV_DATA")
    if not name:
        pytest.skip("needs real data: set SCOREINV_DATA to the folder that holds ct/train.h5, ct/val.h5 and measured/")
    folder = Path(name)
    if not (folder / "ct").is_dir():
        pytest.skip(f"SCOREINV_DATA is {folder}, which has no folder ct")
    return folder
