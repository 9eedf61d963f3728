"""EDM networks (github.com/NVlabs/edm, edm2 and compatible ones): already a D(x, σ) in our coordinate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreinv.priors.adapters.parametrisation import adapted, fitted


@dataclass(frozen=True, eq=False)
class EDMPrior:
    """A network called as network(x, sigma, class_labels), preconditioning included.

    Karras, Aittala, Aila, Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    arXiv:2206.00364; the levels are those of its table 1. The published networks work on images in [-1, 1].

    Attributes:
        network: x (batch, C, H, W), sigma (batch,), class_labels (batch, n_classes) or None -> shaped like x.
        class_labels: one class for all images, (n_classes,), one-hot; by default none.
        levels: σ_min and σ_max.
    """

    network: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    class_labels: Tensor | None = None
    levels: tuple[float, float] = (0.002, 80.0)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return adapted(self._mean, x, sigma, self.levels)

    def _mean(self, x: Tensor, sigma: Tensor) -> Tensor:
        x = fitted(x, self.network)
        labels = None if self.class_labels is None else self.class_labels.to(x).expand(x.shape[0], -1)
        return self.network(x, sigma.to(torch.promote_types(x.dtype, torch.float32)), labels)
