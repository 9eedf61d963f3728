"""The physics: one kind of measurement a file."""

from scoreinv.operators.ct import FanBeamCT, GeometryWarning, MemoryWarning, ParallelBeamCT, equispaced_angles
from scoreinv.operators.dense import Matrix
from scoreinv.operators.fbp import fbp
from scoreinv.operators.grayscale import ColourTransform, Grayscale
from scoreinv.operators.masking import Masking

__all__ = [
    "ColourTransform",
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
