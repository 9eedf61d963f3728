"""The laws of operators and priors, as checks that anyone can run on their own."""

from scoreinv.testing.denoisers import SIGMAS, DenoiserFigures, DenoiserReport, check_denoiser
from scoreinv.testing.operators import check_operator

__all__ = ["SIGMAS", "DenoiserFigures", "DenoiserReport", "check_denoiser", "check_operator"]
