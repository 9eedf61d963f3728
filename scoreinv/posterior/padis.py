"""PaDIS: a prior of patches that know their place, and DPS-guided Langevin dynamics on it.

The patch prior. An image of h x w pixels is laid at a random place into k P x l P pixels of air, k = ⌊h / P⌋ + 1, l = ⌊w / P⌋ + 1,
and cut into patches of P x P, which are denoised one by one:

    D(x, σ) = the patches' D(x_p, σ, place of p), put together and cut back                                          (1)

with a new place at every call, so that no seam stays (Hu, Song, Xu, Shen, Fessler, "Learning Image Priors through Patch-based
Diffusion Models for Solving Inverse Problems", 2024, arXiv:2406.10211). There the iterate itself is padded; here the
image alone is kept and every call pads it by air with fresh noise of level σ, which is what the network was trained on. Places
are in units of half the field of view, as `priors.network.positions` has them; in the padding they go beyond ±1. An image that
is no larger than a patch is denoised whole, without padding: then (1) is D itself.

The method (Langevin steps with the guidance of DPS, as in the paper's program). For σ in levels, n times each:

    x ← x + ½ε (D − x) + √ε σ z + ½ε g σ² JᵀAᵀ (y − A D) / (σ_y² + σ² ‖A‖²),    J = ∂D/∂x,  ε = ½                    (2)

a Langevin step of α = ε σ²; at the last level no noise is added. The last term is α/2 times the gradient of ln p(y | x) with the
error of A D taken for σ² ‖A‖², g times. The paper's is ζ ∇‖y − A D‖ with a ζ tuned for each operator,
a step whose length does not depend on how far the data are; this one is stable for ε g < 4 and needs no tuning. Of photon counts it
takes the exact gradient, eq. (5) of `scoreinv.misfit`. With g = 1 it is annealed Langevin dynamics on the posterior once σ ‖A‖ << σ_y.
On the Gaussian of tests/test_padis.py (an image of one patch, variances
0.5 to 1.5, 3 of 6 directions measured with noise 0.5) with the default settings: variance over exact variance 1.06, mean off by 0.1
exact standard deviations. Few-view CT data are fitted slowly, like the singular values of A squared: a larger g comes nearer to
them, at the cost of draws that vary too little where the data speak (g = 4: 0.5 times).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreinv.misfit import misfit
from scoreinv.posterior.chains import check_settings, run
from scoreinv.posterior.guidance import with_gradient
from scoreinv.priors.denoiser import Counted, Denoiser, NetworkPrior, Rescaled, checked, scale_of
from scoreinv.problem import Problem
from scoreinv.sampling.levels import karras
from scoreinv.solvers import like
from scoreinv.streams import normal

STEP = 0.5
"""ε, as in the paper's program."""

Placed = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(patches (n, P, P), σ (n,), boxes (n, 4)) -> D of every patch."""


def placed(prior: Denoiser) -> Placed:
    """A prior of patches; those that know of no place denoise them as images of their own."""
    if isinstance(prior, NetworkPrior):
        return prior.network
    if isinstance(prior, Rescaled):
        within, shift, scale = placed(prior.denoiser), prior.shift, prior.scale
        return lambda x, sigma, box: shift + scale * within((x - shift) / scale, sigma / scale, box)
    if isinstance(prior, Counted):
        return placed(prior.denoiser)
    return lambda x, sigma, box: prior(x, sigma)


@dataclass(frozen=True)
class Grid:
    """Patches that do not overlap, side by side on a canvas that is larger than the image.

    Attributes:
        height, width: of the image [pixels].
        patch: side of a patch.
        rows, columns: of patches.
    """

    height: int
    width: int
    patch: int
    rows: int
    columns: int

    @classmethod
    def of(cls, height: int, width: int, patch: int) -> Grid:
        """The fewest patches that cover the image wherever it is laid, but for one row and column more where they fit exactly."""
        return cls(height, width, patch, height // patch + 1, width // patch + 1)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the canvas."""
        return self.rows * self.patch, self.columns * self.patch

    def draw(self, rng: Generator) -> tuple[int, int]:
        """A random place: the row and column of the canvas where the image begins."""
        slack = (self.shape[0] - self.height, self.shape[1] - self.width)
        top, left = (int(torch.randint(k + 1, (), generator=rng)) for k in slack)
        return top, left

    def laid(self, x: Tensor, air: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
        """Images (batch, height, width) on their canvases (batch, *shape)."""
        canvas = air.clone()
        for k, (top, left) in enumerate(places):
            canvas[k, top : top + self.height, left : left + self.width] = x[k]
        return canvas

    def taken(self, canvas: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
        """The inverse of `laid`."""
        corners = zip(canvas, places, strict=True)
        return torch.stack([c[top : top + self.height, left : left + self.width] for c, (top, left) in corners])

    def cut(self, canvas: Tensor) -> Tensor:
        """(batch, *shape) -> (batch * patches, patch, patch), member by member, row by row."""
        blocks = canvas.reshape(-1, self.rows, self.patch, self.columns, self.patch)
        return blocks.transpose(2, 3).reshape(-1, self.patch, self.patch)

    def joined(self, patches: Tensor) -> Tensor:
        """The inverse of `cut`."""
        blocks = patches.reshape(-1, self.rows, self.columns, self.patch, self.patch)
        return blocks.transpose(2, 3).reshape(-1, *self.shape)

    def boxes(self, place: tuple[int, int]) -> Tensor:
        """(patches, 4): top, left, bottom, right of every patch in units of half the image."""
        corners = torch.cartesian_prod(torch.arange(self.rows), torch.arange(self.columns)) * self.patch
        start = corners - torch.tensor(place)
        return 2 * torch.cat([start, start + self.patch], dim=1) / torch.tensor([self.height, self.width] * 2) - 1


@dataclass(frozen=True, eq=False)
class PatchPrior:
    """The denoiser (1) of images (batch, H, W), made from one of patches. The patches of an image count as one evaluation.

    Attributes:
        prior: D.
        rngs: one generator for each member, for its place and padding: a call advances them.
        patch: P [pixels]; whole images where they are no larger.
        air: what images are padded by, in their unit: 0 for attenuation.
    """

    prior: Denoiser
    rngs: Sequence[Generator]
    patch: int = 64
    air: float = 0.0

    @property
    def scale(self) -> float:
        return scale_of(self.prior)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if x.ndim != 3 or len(x) != len(self.rngs):
            raise ValueError(f"PatchPrior: expected {len(self.rngs)} images (n, H, W), got shape {tuple(x.shape)}")
        if max(x.shape[1:]) <= self.patch:
            return self.prior(x, sigma)
        if isinstance(self.prior, Counted):
            self.prior.n_evaluations += len(x)
        sigma = torch.as_tensor(sigma).to(x).expand(len(x))
        grid = Grid.of(x.shape[1], x.shape[2], self.patch)
        places = [grid.draw(rng) for rng in self.rngs]
        air = self.air + like(sigma, x) * normal(self.rngs, x.new_empty(len(x), *grid.shape))
        n = grid.rows * grid.columns
        boxes = torch.cat([grid.boxes(place) for place in places]).to(x)
        patches = grid.cut(grid.laid(x, air, places))
        clean = checked(placed(self.prior)(patches, sigma.repeat_interleave(n), boxes), patches)
        images = grid.taken(grid.joined(clean), places)
        if isinstance(self.prior, Counted):
            self.prior.watch(images)
        return images


@dataclass(frozen=True, eq=False)
class PaDIS:
    """Langevin dynamics on a patch prior, guided by the data: see the module's head.

    Attributes:
        prior: a denoiser of patches, differentiable; its `scale` is the size of its own unit in the unit of the images.
        samples: draws.
        n_levels: noise levels.
        steps: Langevin steps a level, an evaluation of all patches and its gradient each.
        sigma_max: first noise level, in the prior's own unit.
        sigma_min: last one.
        guidance: g.
        patch: side of the patches [pixels].
        air: what images are padded by, in their unit: 0 for attenuation.
    """

    prior: Denoiser
    samples: int = 1
    n_levels: int = 100
    steps: int = 10
    sigma_max: float = 10.0
    sigma_min: float = 0.005
    guidance: float = 1.0
    patch: int = 64
    air: float = 0.0

    def __post_init__(self) -> None:
        counts = {k: getattr(self, k) for k in ("samples", "n_levels", "steps", "patch")}
        check_settings(self, levels=(self.sigma_min, self.sigma_max), **counts)
        if not 0 <= self.guidance * STEP < 4:
            raise ValueError(
                f"PaDIS: guidance must lie in [0, {4 / STEP:g}), where steps are stable, got {self.guidance}"
            )

    def __call__(self, problem: Problem, rng: Generator) -> Tensor:
        """Draw: (samples, *batch, *A.in_shape) in y's dtype."""
        return run(self.walk, problem, rng, samples=self.samples, name="PaDIS", n=self.n_levels)

    @torch.no_grad()
    def walk(self, problem: Problem, rngs: Sequence[Generator]) -> Iterator[Tensor]:
        """x after every level."""
        if len(problem.A.in_shape) != 2:
            raise ValueError(
                f"PaDIS: cuts images (H, W) into patches, those of {type(problem.A).__name__} have the shape "
                f"{problem.A.in_shape}; most other methods take images of any shape"
            )
        prior = PatchPrior(self.prior, rngs, self.patch, self.air)
        sigmas = (karras(self.n_levels, self.sigma_min, self.sigma_max)[:-1] * scale_of(self.prior)).to(problem.y)
        x = sigmas[0] * normal(rngs, problem.y.new_zeros(len(rngs), *problem.A.in_shape))
        for k, sigma in enumerate(sigmas):
            fresh = sigma * STEP**0.5 if k + 1 < len(sigmas) else 0.0
            for _ in range(self.steps):
                x = x + STEP / 2 * self._drift(prior, problem, x, sigma) + fresh * normal(rngs, x)
            yield x

    def _drift(self, prior: Denoiser, problem: Problem, x: Tensor, sigma: Tensor) -> Tensor:
        """σ² times the gradient of ln p(x) + g ln p(y | x)."""
        A, fit = problem.A, misfit(problem)
        clean, transposed = with_gradient(prior, x, sigma)
        erring = sigma**2 * (A.norm_squared() or 1.0)
        data, back = A.linearised(clean)
        pull = transposed(back(fit.balanced(data, erring)))
        return clean - x - like(self.guidance * sigma**2 / (fit.tau**2 + erring), x) * pull
