"""Cross-attention: digits from their names, spelled letter by letter, by a spatial transformer in the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gallery import digits
from gallery.draw import Panel, gray, panels, tiled
from gallery.setting import Outcome, Setting
from gallery.training import drawn, learnt
from scoreinv.priors.conditional import Condition, ConditionalConfig, ConditionalDenoiser, Conditioned
from scoreinv.priors.conditional_training import ConditionalRun
from scoreinv.priors.denoiser import Denoiser
from scoreinv.sampling.guided import ClassifierFree
from scoreinv.sampling.levels import karras
from scoreinv.sampling.steps import DPMSolver2M

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LONGEST = max(map(len, WORDS))
WIDTH = 26 + LONGEST
"""A token: which letter, and at which place."""


def spelled(classes: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (n, LONGEST, WIDTH) of the names of digits, and which of them there are, (n, LONGEST)."""
    letters = torch.zeros(len(WORDS), LONGEST, dtype=torch.long)
    mask = torch.zeros(len(WORDS), LONGEST, dtype=torch.bool)
    for k, word in enumerate(WORDS):
        letters[k, : len(word)] = torch.tensor([ord(letter) - ord("a") for letter in word])
        mask[k, : len(word)] = True
    places = torch.eye(LONGEST).expand(len(WORDS), LONGEST, LONGEST)
    tokens = torch.cat([F.one_hot(letters, 26).float(), places], dim=2) * mask[:, :, None]
    return tokens[classes], mask[classes]


def named(rng: np.random.Generator, n: int) -> tuple[Tensor, Condition]:
    """Training digits with their names."""
    found = digits.data()
    which = torch.from_numpy(rng.integers(len(found.train), size=n))
    tokens, mask = spelled(found.labels[which])
    return found.train[which][:, None], Condition(tokens=tokens, mask=mask)


@dataclass(frozen=True, eq=False)
class WordPrior:
    """A network that reads, as a prior with ten classes: their names."""

    model: ConditionalDenoiser
    n_classes: int = len(WORDS)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.given(None)(x, sigma)

    def given(self, c: Any) -> Denoiser:
        """D, told the names of digits (batch,), or nothing."""
        if c is None:
            return Conditioned(self.model, Condition())
        tokens, mask = spelled(torch.as_tensor(c).reshape(-1))
        return Conditioned(self.model, Condition(tokens=tokens, mask=mask))


def run(setting: Setting) -> Outcome:
    """Digits by their names, told once and told with emphasis."""
    judge, steps = digits.judge(setting), setting.steps(6000)
    network = ConditionalConfig(digits.NETWORK, token_width=WIDTH, cross_attention=(0,))
    training = digits.training(steps, p_mean=-0.5, p_std=1.3, drop=0.15)
    prior = WordPrior(learnt(ConditionalRun(network, training, named), setting.work / f"digits-words-{steps}"))
    n = setting.draws(300, 10)
    c = torch.arange(n) % len(WORDS)
    levels = karras(setting.count(20, 3), 0.02, 40.0)
    told = {
        w: drawn(ClassifierFree(prior, c, w), digits.SHAPE, n, levels, DPMSolver2M(), chunk=n) for w in (0.0, 1.0, 2.0)
    }
    right = {w: judge.agreement(x, c) for w, x in told.items()}
    shown = [
        Panel(
            f"“{word}”",
            f"{100 * judge.agreement(told[1.0][k::10], c[k::10]):.0f} % look like it",
            gray(tiled(told[1.0][k::10][:9].clamp(-1, 1), 3)),
        )
        for k, word in enumerate(WORDS)
    ]
    panels(setting.picture("digits_words"), shown, 5, width=1.7)
    figure = f"names of digits: accuracy {right[1.0]:.2f}, with w = 2 {right[2.0]:.2f}, told nothing {right[0.0]:.2f}; Fréchet {judge.distance(told[1.0]):.2f}"
    return Outcome({"cross-attention": figure}, {"accuracy": {str(w): a for w, a in right.items()}})
