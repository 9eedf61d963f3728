"""Conditional networks: what they are told, what they are not, their files and their training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from scoreinv.priors.classes import ClassPrior, class_conditional, given
from scoreinv.priors.classifier import Classifier, ClassifierConfig, load_classifier, save_classifier
from scoreinv.priors.conditional import (
    Condition,
    ConditionalConfig,
    ConditionalDenoiser,
    Conditioned,
    load_conditional,
    save_conditional,
)
from scoreinv.priors.conditional_training import (
    ClassifierRun,
    ConditionalRun,
    ConditionalTraining,
    ExampleRun,
    labelled,
)
from scoreinv.priors.descent import descend
from scoreinv.priors.exact import GaussianPrior
from scoreinv.priors.network import EDMDenoiser, UNetConfig

UNET = UNetConfig(widths=(16, 64), attention=(1,), embedding=32, unshuffle=1)
ALL = ConditionalConfig(UNET, n_classes=3, image_channels=2, token_width=5, cross_attention=(1,))


def disturbed(model: torch.nn.Module) -> Any:
    """A network none of whose weights is zero, as at the end of training."""
    rng = Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=rng))
    return model.eval().requires_grad_(False)


def made(config: ConditionalConfig = ALL) -> ConditionalDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: ConditionalDenoiser = disturbed(ConditionalDenoiser(config))
    return network


@pytest.fixture
def x(rng: Generator) -> Tensor:
    return torch.randn(3, 1, 4, 6, generator=rng)


@pytest.fixture
def condition(rng: Generator) -> Condition:
    image, tokens = torch.randn(3, 2, 4, 6, generator=rng), torch.randn(3, 4, 5, generator=rng)
    return Condition(torch.tensor([2, 0, 1]), image, tokens)


SIGMA = torch.tensor([0.1, 0.5, 2.0])


def test_the_unconditional_network_is_inside(x: Tensor) -> None:
    """With the same weights and a vector of zeros for no class, nothing told is `EDMDenoiser`."""
    model = made()
    state = model.state_dict()
    state["unet.classes.weight"][-1] = 0
    plain = EDMDenoiser(UNET)
    own = plain.state_dict().keys()
    plain.load_state_dict({k: v for k, v in state.items() if k in own})
    without = ConditionalConfig(UNET, n_classes=3, image_channels=2)
    same = ConditionalDenoiser(without)
    same.load_state_dict({k: v for k, v in state.items() if "transformers" not in k})
    with torch.no_grad():
        torch.testing.assert_close(same(x, SIGMA), plain(x, SIGMA), rtol=0, atol=0)
        assert (made()(x, SIGMA) - plain(x, SIGMA)).abs().max() > 1e-3  # its transformer attends to pixels, too


@pytest.mark.parametrize("part", ["classes", "image", "tokens"])
def test_each_part_is_heard_and_can_be_left_out(part: str, x: Tensor, condition: Condition) -> None:
    model = made()
    only = Condition(**{part: getattr(condition, part)})
    out, nothing = model(x, SIGMA, only), model(x, SIGMA)
    assert ((out - nothing).abs().flatten(1).amax(1) > 1e-4).all()
    told = torch.tensor([True, False, True])
    mixed = model(x, SIGMA, dataclasses.replace(only, told=told))
    torch.testing.assert_close(mixed[told], out[told])
    torch.testing.assert_close(mixed[~told], nothing[~told])


def test_a_batch_is_its_members_and_one_condition_serves_all(x: Tensor, condition: Condition) -> None:
    model = made()
    together = model(x, SIGMA, condition)
    alone = [model(x[k : k + 1], SIGMA[k], condition.mapped(lambda t, k=k: t[k : k + 1])) for k in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    first = condition.mapped(lambda t: t[:1])
    torch.testing.assert_close(model(x, SIGMA, first)[:1], together[:1])
    with pytest.raises(ValueError, match="a batch of 3 needs a condition of 1 or 3 members, got 2"):
        model(x, SIGMA, condition.mapped(lambda t: t[:2]))


def test_images_of_any_size_are_padded(rng: Generator) -> None:
    model = made(ConditionalConfig(UNET, image_channels=1))
    x, image = torch.randn(2, 5, 7, generator=rng), torch.randn(2, 1, 5, 7, generator=rng)
    out = Conditioned(model, Condition(image=image))(x.double(), torch.tensor(0.3))
    assert out.shape == x.shape and out.dtype == torch.float64
    with_channel = Conditioned(model, Condition(image=image))(x[:, None], torch.tensor(0.3))
    torch.testing.assert_close(with_channel[:, 0], out.float())
    even = Conditioned(model, Condition(image=image[..., :4, :6]))(x[:, :4, :6], torch.tensor(0.3))
    torch.testing.assert_close(
        even, model(x[:, None, :4, :6], torch.tensor(0.3), Condition(image=image[..., :4, :6]))[:, 0]
    )
    with pytest.raises(ValueError, match="expected images"):
        Conditioned(model, Condition())(x[0], torch.tensor(0.3))


@pytest.mark.parametrize(
    ("config", "told", "words"),
    [
        (ConditionalConfig(UNET, image_channels=1), {"classes": torch.tensor([0])}, "has no condition 'classes'"),
        (ConditionalConfig(UNET, n_classes=2), {"image": torch.zeros(1, 1, 4, 6)}, "has no condition 'image'"),
        (ConditionalConfig(UNET, n_classes=2), {"tokens": torch.zeros(1, 1, 4)}, "has no condition 'tokens'"),
        (ALL, {"classes": torch.tensor([3])}, "expected a class from 0 to 2, got 3"),
        (ALL, {"classes": torch.tensor([-1])}, "expected a class from 0 to 2, got -1"),
        (ALL, {"classes": torch.tensor([1.0])}, "a class is a whole number, got torch.float32"),
        (ALL, {"image": torch.zeros(1, 2, 4, 5)}, r"expects an image \(2, 4, 6\) beside x, got \(2, 4, 5\)"),
        (ALL, {"tokens": torch.zeros(1, 1, 4)}, r"expected tokens \(3, number, 5\)"),
    ],
)
def test_conditions_that_a_network_cannot_be_told(
    config: ConditionalConfig, told: dict[str, Tensor], words: str, x: Tensor
) -> None:
    with pytest.raises(ValueError, match=words):
        ConditionalDenoiser(config)(x, SIGMA, Condition(**told))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "n_classes, image_channels or token_width of at least 1"),
        ({"n_classes": -1, "image_channels": 1}, "none negative"),
        ({"token_width": 5}, "tokens need both"),
        ({"n_classes": 2, "cross_attention": (1,)}, "tokens need both"),
        ({"token_width": 5, "cross_attention": (0,)}, "multiple of 64, got level 0"),
        ({"token_width": 5, "cross_attention": (2,)}, "levels between 0 and 1"),
    ],
)
def test_impossible_networks(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ConditionalConfig(UNET, **settings)


def test_priors_of_classes(x: Tensor) -> None:
    model = made(ConditionalConfig(UNET, n_classes=3))
    prior = ClassPrior(model)
    images, sigma = x[:, 0], torch.tensor(0.4)
    one = prior.given(2)(images, sigma)
    torch.testing.assert_close(one, model(x, sigma, Condition(classes=torch.tensor([2])))[:, 0])
    each = prior.given(torch.tensor([2, 0, 1]))(images, sigma)
    torch.testing.assert_close(each[:1], one[:1])
    torch.testing.assert_close(prior(images, sigma), model(x, sigma)[:, 0])
    assert class_conditional(prior) is prior
    for c, words in ((3, "ClassPrior: expected a class from 0 to 2, got 3"), (1.5, "whole number, got 1.5"), (torch.zeros(1, 1).long(), "one class, or classes")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            given(prior, c)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a prior that knows classes, got GaussianPrior"):
        given(GaussianPrior(torch.zeros(2), torch.eye(2)), 0)
    with pytest.raises(ValueError, match="made without classes"):
        ClassPrior(made(ConditionalConfig(UNET, image_channels=1)))


# Classifiers


def test_classifier(rng: Generator) -> None:
    config = ClassifierConfig(UNET, 4)
    fresh = Classifier(config)
    x, sigma = torch.randn(3, 5, 7, generator=rng), torch.tensor([0.1, 1.0, 5.0])
    torch.testing.assert_close(fresh(x, sigma).exp(), torch.full((3, 4), 0.25))
    model = disturbed(fresh)
    out = model(x, sigma)
    torch.testing.assert_close(out.exp().sum(1), torch.ones(3))
    torch.testing.assert_close(torch.cat([model(x[k : k + 1], sigma[k]) for k in range(3)]), out)
    torch.testing.assert_close(model(x[:, None], sigma), out)
    assert (model(x, 2 * sigma) - out).abs().max() > 1e-4  # it is told the noise
    with pytest.raises(ValueError, match="Classifier: expected images"):
        model(x[0, 0], sigma)
    with pytest.raises(ValueError, match="n_classes of at least 2, got 1"):
        ClassifierConfig(UNET, 1)


# Files


def test_files(tmp_path: Path, x: Tensor, condition: Condition) -> None:
    network, classifier = made(), disturbed(Classifier(ClassifierConfig(UNET, 4)))
    paths = [tmp_path / "network.safetensors", tmp_path / "classifier.safetensors"]
    save_conditional(network, paths[0], {"description": "three classes"})
    save_classifier(classifier, paths[1], {})
    back, card = load_conditional(paths[0])
    assert back.config == ALL and card["description"] == "three classes"
    assert "three classes" in paths[0].with_suffix(".md").read_text()
    torch.testing.assert_close(back(x, SIGMA, condition), network(x, SIGMA, condition), atol=0.02, rtol=0.02)
    again, _ = load_classifier(paths[1])
    torch.testing.assert_close(again(x, SIGMA), classifier(x, SIGMA), atol=0.02, rtol=0.02)
    with pytest.raises(ValueError, match="expected format 'scoreinv-conditional-1', got 'scoreinv-classifier-1'"):
        load_conditional(paths[1])
    text = paths[0].with_suffix(".json").read_text()
    paths[0].with_suffix(".json").write_text(text.replace('"n_classes": 3', '"n_classes": 4'))
    with pytest.raises(ValueError, match="describes no network that these weights fit"):
        load_conditional(paths[0])
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="checksum differs"):
        load_classifier(paths[1])
    with pytest.raises(ValueError, match=r"written to a \.safetensors file, got '\.pt'"):
        save_classifier(classifier, tmp_path / "classifier.pt", {})


# Training

SHORT = ConditionalTraining(steps=4, batch_size=4, warmup=2, ema=(0.9,), drop=0.5)
EXAMPLES = labelled(torch.linspace(-1, 1, 5 * 16).reshape(5, 4, 4), torch.tensor([0, 1, 2, 0, 1]))


def run(kind: str, config: ConditionalTraining = SHORT) -> ExampleRun:
    if kind == "classifier":
        return ClassifierRun(ClassifierConfig(UNET, 3), config, EXAMPLES)
    return ConditionalRun(ConditionalConfig(UNET, n_classes=3), config, EXAMPLES)


def test_batches() -> None:
    many = run("network", dataclasses.replace(SHORT, batch_size=2000, drop=0.25))
    b = many.batch(3)
    assert b.x0.shape == (2000, 1, 4, 4) and torch.equal(b.noisy, b.x0 + b.sigma[:, None, None, None] * b.noise)
    assert b.condition.classes is not None and b.condition.told is not None
    low = b.x0[:, 0, 0, 0]  # images 0 to 4 begin with -1, -0.6 ...
    which = ((low + 1) / (2 * 16 / 79)).round().long()
    assert torch.equal(b.condition.classes, torch.tensor([0, 1, 2, 0, 1])[which])
    assert abs(float(b.condition.told.double().mean()) - 0.75) < 4 * (0.25 * 0.75 / 2000) ** 0.5
    ln = b.sigma.log()
    assert abs(float(ln.mean()) + 1.2) < 4 * 1.2 / 2000**0.5 and abs(float(ln.std()) - 1.2) < 0.1
    assert torch.equal(many.batch(3).noise, b.noise) and not torch.equal(many.batch(4).noise, b.noise)


@pytest.mark.parametrize("kind", ["network", "classifier"])
def test_a_resumed_run_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    def trained(folder: str, until: int) -> ExampleRun:
        made = run(kind)
        list(descend(made, tmp_path / folder, dict, until=until))
        return made

    straight, _, resumed = trained("a", 4), trained("b", 2), trained("b", 4)
    assert resumed.step == 4
    for k, v in straight.averages[0].state_dict().items():
        assert torch.equal(v, resumed.averages[0].state_dict()[k]), k
    other = "network" if kind == "classifier" else "classifier"
    with pytest.raises(ValueError, match="holds the network"):
        run(other).load(tmp_path / "a" / "state.safetensors")
    with pytest.raises(ValueError, match="holds averages"):
        run(kind, dataclasses.replace(SHORT, ema=(0.9, 0.99))).load(tmp_path / "a" / "state.safetensors")


def test_the_loss_does_not_see_classes_that_are_left_out() -> None:
    everyone = run("network", dataclasses.replace(SHORT, drop=1.0))
    disturbed(everyone.model).requires_grad_(True)
    b = everyone.batch(0)
    other = dataclasses.replace(b, condition=dataclasses.replace(b.condition, classes=2 - b.condition.classes))  # type: ignore[operator]
    assert torch.equal(everyone.loss(b), everyone.loss(other))
    told = dataclasses.replace(b, condition=dataclasses.replace(b.condition, told=None))
    assert abs(float((everyone.loss(b) - everyone.loss(told)).detach())) > 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"drop": 1.5}, r"drop must lie in \[0, 1\]"),
        ({"p_std": 0.0}, "p_std must be positive"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"ema": ()}, "one or more decays"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SHORT, **changes)


def test_examples_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"labelled: expected images .* got \(5, 4, 4\) and \(4,\)"):
        labelled(torch.zeros(5, 4, 4), torch.zeros(4).long())
    blind = ClassifierRun(ClassifierConfig(UNET, 3), SHORT, lambda rng, n: (torch.zeros(n, 1, 4, 4), Condition()))
    with pytest.raises(ValueError, match="the examples have no classes"):
        blind.advance()
    x0, known = EXAMPLES(np.random.default_rng(0), 3)
    assert x0.shape == (3, 1, 4, 4) and known.classes is not None and known.classes.shape == (3,)
