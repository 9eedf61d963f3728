"""PNDM: linear multistep steps of the probability flow in which every part is a step of DDIM.

A transfer φ(e) from σ to σ' is DDIM's step with e for the noise estimate, on our coordinate

    φ(e) = x + (σ' − σ) e                                                                                             (1)

and PNDM puts averages of noise estimates ε̂ = (x − D) / σ into it (Liu, Ren, Lin, Zhao 2022, arXiv:2202.09778, F-PNDM):

    first three steps   pseudo Runge-Kutta: e₁ at x, e₂ at half a step φ(e₁), e₃ at half a step φ(e₂), e₄ at φ(e₃),
                        x' = φ((e₁ + 2 e₂ + 2 e₃ + e₄) / 6)
    then                pseudo linear multistep (PLMS): x' = φ((55 e_t − 59 e_{t−1} + 37 e_{t−2} − 9 e_{t−3}) / 24)

"Half" and the coefficients are in the time in which the levels are equally spaced. The order of convergence is 2 as in the
paper, since (1) takes σ to be straight between two levels; where levels are equally spaced in σ itself, it is 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Generator, Tensor

from scoreinv.priors.denoiser import Denoiser


def geometric_middle(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Half way in ln σ, for `levels.geometric`."""
    return (sigma * sigma_next).sqrt()


class PNDM:
    """F-PNDM; remembers the last three noise estimates. 4 evaluations in each of the first three steps, then one a step.

    A call that does not go on where the last one ended starts afresh, so one instance can serve several runs in turn. A
    step to 0 among the first three is `steps.euler`.
    """

    def __init__(self, middle: Callable[[Tensor, Tensor], Tensor] = geometric_middle) -> None:
        """A solver for levels equally spaced in some time.

        Args:
            middle: (σ, σ') -> the level half way between: of the schedule, `Process.middle` or `DiscreteVP.middle`.
        """
        self.middle = middle
        self._place: tuple[float, tuple[int, ...]] | None = None
        self._past: list[Tensor] = []

    def __call__(
        self, denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, rngs: Sequence[Generator]
    ) -> Tensor:
        if self._place != (float(sigma), tuple(x.shape)):
            self._past = []

        def noise(x: Tensor, sigma: Tensor) -> Tensor:
            return (x - denoise(x, sigma)) / sigma

        e = noise(x, sigma)
        if len(self._past) == 3:
            before, earlier, first = self._past
            slope = (55 * e - 59 * before + 37 * earlier - 9 * first) / 24
        elif sigma_next == 0:
            slope = e
        else:
            half = self.middle(sigma, sigma_next)
            e2 = noise(x + (half - sigma) * e, half)
            e3 = noise(x + (half - sigma) * e2, half)
            e4 = noise(x + (sigma_next - sigma) * e3, sigma_next)
            slope = (e + 2 * e2 + 2 * e3 + e4) / 6
        self._past = [e, *self._past[:2]]
        self._place = (float(sigma_next), tuple(x.shape))
        return x + (sigma_next - sigma) * slope
