"""Published examples with a known posterior, to hold a method against.

A `Reference` is a prior, an operator and a noise level, with one measurement where the publication has one:

    case = four_modes()
    draws = method(case.problem, rng);  case.posterior.mean, case.posterior.covariance, case.posterior.draw(n, rng)
    many = case.simulate(100, rng)  # images of the prior with their data, for calibration

Operators are made by their registered names.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv import plugins
from scoreinv.linop import LinearOperator
from scoreinv.priors.exact import GaussianMixturePrior, GaussianPrior, dense
from scoreinv.priors.fourier import StationaryPrior, matern
from scoreinv.problem import Problem


@dataclass(frozen=True, eq=False)
class Reference:
    """A problem whose posterior is known.

    Attributes:
        prior: Gaussian or a mixture; its `posterior` is exact.
        A: the operator.
        noise_std: σ_y.
        y: one measurement.
    """

    prior: GaussianPrior | GaussianMixturePrior
    A: LinearOperator
    noise_std: float
    y: Tensor

    @property
    def problem(self) -> Problem:
        """The one measurement, without batch dimension."""
        return Problem(self.A, self.y, self.noise_std)

    @functools.cached_property
    def posterior(self) -> GaussianPrior | GaussianMixturePrior:
        """The exact law of the image given that measurement."""
        return self.prior.posterior(self.problem)

    def simulate(self, n: int, rng: Generator) -> Problem:
        """n images of the prior, as the problem's truth, with data of their own: (n, *A.out_shape)."""
        x = self.prior.draw(n, rng)
        y = self.A(x)
        return Problem(self.A, y + self.noise_std * _normal(y.shape, rng), self.noise_std, x)


def four_modes(y: float = 2.5) -> Reference:
    """The plane, four components at (±2.5, ±2.5) with standard deviation 0.35, the first coordinate measured with σ_y = 0.3.

    At y = 2.5 the posterior has two modes that differ in what is not measured: variances (0.0519, 6.3725), where a method
    that keeps to one mode shows 0.1225 for the second, and the posterior mean lies in the valley between.
    SNaP, appendix B.7.
    """
    means = 2.5 * torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    prior = GaussianMixturePrior(torch.full((4,), 0.25), means, 0.35**2 * _identities(4, 2))
    return Reference(prior, _matrix([[1.0, 0.0]]), 0.3, torch.tensor([y], dtype=torch.float64))


def twenty_five_modes(rng: Generator, *, pixels: int = 8, data: int = 1) -> Reference:
    """25 components of unit covariance at (8i, 8j, 8i, 8j, ...), i and j from -2 to 2, seen through a random matrix.

    Weights are squared normal numbers, singular values are uniform on [0, 1], σ_y is uniform up to the largest, the measured
    image is a draw of the prior. Published with 8, 80 or 800 pixels and 1, 2 or 4 data, 20 seeds. (Cardoso et al. 2023,
    arXiv:2308.07983, section 5; Boys et al. 2024, arXiv:2310.06721.)

    Raises:
        ValueError: pixels is odd, or there are more data than pixels.
    """
    if pixels % 2 or not 1 <= data <= pixels:
        raise ValueError(f"twenty_five_modes: expected even pixels >= data >= 1, got {pixels} pixels and {data} data")
    corners = torch.cartesian_prod(*[torch.arange(-2.0, 3.0, dtype=torch.float64)] * 2)
    prior = GaussianMixturePrior(
        _normal((25,), rng).square(), 8 * corners.repeat(1, pixels // 2), _identities(25, pixels)
    )
    left, _, right = torch.linalg.svd(_normal((data, pixels), rng), full_matrices=False)
    values = torch.rand(data, generator=rng, dtype=torch.float64).sort(descending=True).values
    noise_std = float(values[0] * torch.rand((), generator=rng, dtype=torch.float64))
    return _measured(prior, _matrix(left @ values.diag() @ right), noise_std, rng)


def two_modes(rng: Generator, *, noise_std: float = 0.2) -> Reference:
    """16 pixels of which the first 14 are measured; two components that differ in the other two, at 0 (weight 0.8) and at 3.

    After the example of Qiu et al. 2026, arXiv:2602.04189, with σ_y = 0.2 among others. The measured image is a draw of the
    prior. That components have unit covariance and that pixels are measured one by one are our choice.
    """
    means = torch.zeros(2, 16, dtype=torch.float64)
    means[1, 14:] = 3
    weights = torch.tensor([0.8, 0.2], dtype=torch.float64)
    A = _matrix(torch.eye(16, dtype=torch.float64)[:14])
    return _measured(GaussianMixturePrior(weights, means, _identities(2, 16)), A, noise_std, rng)


def few_view_ct(rng: Generator, *, size: int = 32, views: int = 23, relative_noise: float = 0.01) -> Reference:
    """Smooth Gaussian images of size x size pixels of 1 mm, seen by a parallel-beam scanner; the measured image is a draw.

    Args:
        rng: of the image and its noise.
        size: up to 32 the dense prior is made in a second.
        views: over half a turn.
        relative_noise: σ_y as a part of the root mean square of noise-free data, over all images of the prior.
    """
    prior = _smooth(size)
    A = plugins.get("operators", "parallel_beam_ct").for_image((size, size), 1.0, n_views=views)
    matrix = dense(A)
    mean_square = float((matrix @ prior.covariance * matrix).sum()) / len(matrix)
    return _measured(prior, A, relative_noise * math.sqrt(mean_square), rng)


def masked_image(rng: Generator, *, size: int = 16, keep: float = 0.5, noise_std: float = 0.1) -> Reference:
    """The images of `few_view_ct`, of which some pixels are known up to noise; the measured image is a draw.

    Args:
        rng: of the image and its noise.
        size: in pixels, up to 32.
        keep: share of the pixels that are known, always the same ones.
        noise_std: σ_y; the images have unit standard deviation.
    """
    A = plugins.get("operators", "masking").for_image((size, size), 1.0, keep=keep)
    return _measured(_smooth(size), A, noise_std, rng)


def _smooth(size: int) -> GaussianPrior:
    """Images of size x size pixels whose covariance is of Matérn's family with ν = 1 (edges more than waves), length size / 8 and
    unit standard deviation, made so on a torus of twice the size and cut out: opposite edges do not know of each other.
    """
    torus = (2 * size, 2 * size)
    whole = StationaryPrior(torch.zeros(torus, dtype=torch.float64), matern(torus, std=1.0, length=size / 8))
    correlation = whole.times(_unit(torus))[0]
    row, column = (i.flatten() for i in torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    covariance = correlation[row[:, None] - row, column[:, None] - column]
    return GaussianPrior(torch.zeros(size, size, dtype=torch.float64), covariance)


def _measured(
    prior: GaussianPrior | GaussianMixturePrior, A: LinearOperator, noise_std: float, rng: Generator
) -> Reference:
    """The reference with data of an image drawn from the prior."""
    y = A(prior.draw(1, rng)[0])
    return Reference(prior, A, noise_std, y + noise_std * _normal(y.shape, rng))


def _matrix(rows: Tensor | list[list[float]]) -> LinearOperator:
    operator: LinearOperator = plugins.get("operators", "matrix")(rows)
    return operator


def _identities(k: int, d: int) -> Tensor:
    return torch.eye(d, dtype=torch.float64).expand(k, d, d)


def _unit(shape: tuple[int, ...]) -> Tensor:
    """1 in the first pixel, (1, *shape)."""
    v = torch.zeros(1, math.prod(shape), dtype=torch.float64)
    v[0, 0] = 1
    return v.reshape(1, *shape)


def _normal(shape: tuple[int, ...], rng: Generator) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)
