"""The physics: one kind of measurement a file."""

from scoreinv.operators.ct import FanBeamCT, GeometryWarning, MemoryWarning, ParallelBeamCT, equispaced_angles
from scoreinv.operators.dense import Matrix
from scoreinv.operators.fbp import fbp
from scoreinv.operators.grayscale import Grayscale
from scoreinv.operators.masking import Masking

__all__ = [
    "FanBeamCT",
    "GeometryWarning",
    "Grayscale",
    "Masking",
    "Matrix",
    "MemoryWarning",
    "ParallelBeamCT",
    "equispaced_angles",
    "fbp",
]
