"""The transform of Song et al. 2022 for CT: a zero-padded FFT, restricted to radial lines rounded to the nearest cell.

With an image of n x n pixels, c = ⌈√2 n⌉ and M = expansion · c:

    T x       the M x M DFT of the zero-padded image at the cells (round(r cos θ), round(r sin θ)) mod M of all views θ,
              −M/2 <= r <= M/2
    T⁻¹ c     the values written into an otherwise empty M x M array, inverse DFT, cropped, real part
    known     what T x should be: by the Fourier-slice theorem the Fourier transform of the projection at θ,

                  (Δ / p²) Σ_i y_i exp(−2πi ω t_i),  ω = cell · (cos θ, sin θ) / (M p),

              with detector cells at t_i of width Δ [mm] and pixels of side p [mm]

T⁻¹ T is no projection: what is merged into k-space is not the transform of an image of n x n pixels any more, and the
crop undoes part of it. Nor is known quite T x: rounding to the nearest cell leaves a difference of some 3 % with
expansion = 4. Where several points share a cell, the mean of their data counts. All images are real, so half of k-space
is kept. (Song, Shen, Xing, Ermon 2022, arXiv:2111.08005, section 3.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PseudoPolar:
    """T, T⁻¹ and the data's place in k-space, for one set of views; made by `pseudo_polar`.

    Attributes:
        shape: (H, W) of the images.
        side: M, the side of the padded array.
        cells: (n_cells,) distinct cells, as indices into the flattened (M, M // 2 + 1) half of k-space.
        phases: (n_cells,) complex, moves the origin from the image's centre to its first pixel.
        points: for each view, of every point on its line: its place among `cells` (several may share one), and the
            cell's coordinate along the line, in units of 1 / (M p).
    """

    shape: tuple[int, int]
    side: int
    cells: Tensor
    phases: Tensor
    points: tuple[tuple[Tensor, Tensor], ...]

    def transform(self, x: Tensor) -> Tensor:
        """T x: (batch, H, W) real -> (batch, n_cells) complex."""
        rows = torch.fft.rfft(x, n=self.side, dim=-1)
        plane = torch.fft.fft(rows, n=self.side, dim=-2)
        values: Tensor = plane.flatten(1)[:, self.cells.to(x.device)]
        return values

    def inverse(self, values: Tensor) -> Tensor:
        """T⁻¹ of values (batch, n_cells), zero in all other cells: (batch, H, W) real."""
        plane = values.new_zeros(len(values), self.side * (self.side // 2 + 1))
        plane[:, self.cells.to(values.device)] = values
        columns = torch.fft.ifft(plane.reshape(len(values), self.side, -1), dim=-2)[:, : self.shape[0]]
        image: Tensor = torch.fft.irfft(columns, n=self.side, dim=-1)[..., : self.shape[1]]
        return image

    def known(self, sinogram: Tensor, positions_mm: Tensor, pixel_size_mm: float) -> Tensor:
        """What T x should be by the data: (batch, views, detectors) -> (batch, n_cells) complex.

        Args:
            sinogram: line integrals.
            positions_mm: (detectors,) of the detectors' centres, equally spaced.
            pixel_size_mm: side of a pixel.
        """
        spacing = float(positions_mm[1] - positions_mm[0])
        complex_dtype = torch.complex64 if sinogram.dtype == torch.float32 else torch.complex128
        total = torch.zeros(len(sinogram), len(self.cells), dtype=complex_dtype, device=sinogram.device)
        for view, (cell, cycles) in enumerate(self.points):
            omega = cycles.double() / (self.side * pixel_size_mm)
            wave = torch.exp(-2j * math.pi * positions_mm.double().cpu()[:, None] * omega).to(total)
            total.index_add_(1, cell.to(total.device), sinogram[:, view].to(total) @ wave)
        count = torch.zeros(len(self.cells))
        for cell, _ in self.points:
            count.index_add_(0, cell, torch.ones(len(cell)))
        scale = self.phases * (spacing / pixel_size_mm**2) / count
        return total * scale.to(total)


def pseudo_polar(shape: tuple[int, int], directions: Tensor, expansion: int = 4, band: float = 1.0) -> PseudoPolar:
    """T for views with the given directions.

    Args:
        shape: (H, W).
        directions: (views, 2), unit vectors along the detector in (row, column) coordinates.
        expansion: padding beyond the diagonal.
        band: pixel size over detector width, where that is less than 1: frequencies beyond the detector's are left out.
    """
    side = expansion * math.ceil(math.sqrt(2) * max(shape))
    width = side // 2 + 1
    r = torch.arange(-(side // 2), side // 2 + 1, dtype=torch.float64)
    r = r[r.abs() <= band * side / 2]
    per_view = []
    for direction in directions.double():
        k = torch.round(r[:, None] * direction).long()
        k = k[k[:, 1] >= 0]  # the other half is the complex conjugate
        per_view.append((torch.remainder(k[:, 0], side) * width + k[:, 1], k.double() @ direction))
    cells = torch.unique(torch.cat([flat for flat, _ in per_view]))
    points = tuple((torch.searchsorted(cells, flat), cycles) for flat, cycles in per_view)
    row, column = torch.fft.fftfreq(side, dtype=torch.float64)[cells // width], (cells % width).double() / side
    phases = torch.exp(-1j * math.pi * (row * (shape[0] - 1) + column * (shape[1] - 1)))
    return PseudoPolar(shape, side, cells, phases, points)
