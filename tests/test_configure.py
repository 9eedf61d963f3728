"""Operators and methods from the plain arguments of a command line."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreinv import configure, plugins
from scoreinv.arguments import ArgumentError, plain, resolved
from scoreinv.configure import call, operator_for_image, parse_settings, settings_of
from scoreinv.priors.denoiser import Denoiser


def no_prior() -> Denoiser:
    raise AssertionError("a prior was loaded for a method that needs none")


def shrink(x: Tensor, sigma: Tensor) -> Tensor:
    return x / (1 + sigma**2)


def test_settings_are_json_where_they_can_be() -> None:
    pairs = ["a=1", "b=1e-3", "c=true", "d=[1, 2]", "e=haar", "f=null", 'g="5"', "h=x=y", " i =2", "j="]
    values = [1, 1e-3, True, [1, 2], "haar", None, "5", "x=y", 2, ""]
    assert parse_settings(pairs) == dict(zip("abcdefghij", values, strict=True))
    assert parse_settings([]) == {}


@pytest.mark.parametrize("pair", ["max_iterations", "=5", " =5", ""])
def test_settings_without_key_or_equals(pair: str) -> None:
    with pytest.raises(ValueError, match=f"key=value, got {pair!r}"):
        parse_settings([pair])


def test_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'cgls' has no setting 'iteratons'\. Did you mean '\w*iterations'\? Known"):
        configure.method("cgls", {"iteratons": 5}, no_prior)
    with pytest.raises(ValueError, match=r"no method is named 'proximl'\. Did you mean 'proximal'\?"):
        configure.method("proximl", {}, no_prior)


def test_missing_setting_says_how_to_give_it() -> None:
    def build(image_shape: tuple[int, int], width: float, depth: int = 1) -> None: ...

    with pytest.raises(ValueError, match="thing needs width: give --set width=VALUE"):
        call("thing", build, {"image_shape": (2, 2)})


def test_refused_settings_are_value_errors() -> None:
    with pytest.raises(ValueError, match="samples"):
        configure.method("proximal", {"samples": 0}, lambda: shrink)
    with pytest.raises(ValueError, match="thing refuses its settings: no"):
        call("thing", refusing, {})


def refusing() -> None:
    raise TypeError("no")


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("proximal", {"samples": "many"}, "samples should be int, got 'many'"),
        ("proximal", {"n_levels": 2.5}, r"n_levels should be int, got 2\.5"),
        ("proximal", {"sigma_max": "big"}, "sigma_max should be float or None, got 'big'"),
        ("fista_tv", {"weight": [1, 2]}, r"weight should be float or None, got \[1, 2\]"),
        ("dds", {"trust": math.nan}, "trust should be a number, got nan"),
        ("tds", {"particles": 3.5}, r"particles should be int, got 3\.5"),  # a field that is inherited
        ("mcg_diff", {"samples": True}, "samples should be int, got True"),
    ],
)
def test_settings_of_another_type(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"'{method}': {message}"):
        configure.method(method, settings, lambda: shrink)


def test_numbers_and_arrays_of_numpy_are_settings_too() -> None:
    built: Any = configure.method("proximal", {"samples": np.int64(2), "trust": np.float32(1.5)}, lambda: shrink)
    assert built.samples == 2
    assert configure.settings_of(built)["samples"] == 2 and type(configure.settings_of(built)["trust"]) is float
    A: Any = operator_for_image("parallel_beam_ct", (8, 8), 1.0, {"angles": np.linspace(0, 1, 3)})
    assert A.out_shape[0] == 3
    found = resolved("dds", plugins.get("methods", "dds"), {"n_levels": np.int64(30)}, automatic=["prior"])
    assert found["n_levels"] == 30 and type(found["n_levels"]) is int
    many = np.linspace(0, 3, 2000)
    assert (
        plain(many) == many.tolist()
        and plain(torch.tensor([1.5])) == [1.5]
        and plain({"a": (np.float32(0.5),)}) == {"a": [0.5]}
    )


def test_infinity_is_left_to_methods_and_refused_in_sweeps() -> None:
    built: Any = configure.method("pigdm", {"longest": math.inf}, lambda: shrink)
    assert built.longest == math.inf
    with pytest.raises(ValueError, match="longest should be a number, got nan"):
        configure.method("pigdm", {"longest": np.float32("nan")}, lambda: shrink)
    with pytest.raises(ArgumentError, match="longest should be a finite number, got inf"):
        resolved("pigdm", plugins.get("methods", "pigdm"), {"longest": math.inf}, automatic=["prior"])


def test_a_prior_goes_to_methods_that_need_one() -> None:
    built: Any = configure.method("proximal", {"samples": 2}, lambda: shrink)
    assert built.prior is shrink and built.samples == 2
    assert configure.needs_prior("proximal") and not configure.needs_prior("cgls")
    assert configure.has_setting("proximal", "samples") and not configure.has_setting("fbp", "samples")
    configure.method("cgls", {}, no_prior)
    with pytest.raises(ValueError, match="--prior FILE"):
        configure.method("proximal", {"prior": "mine.safetensors"}, lambda: shrink)


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_settings_of_every_method_are_json_and_make_it_again(name: str) -> None:
    built = configure.method(name, {}, lambda: shrink)
    settings = settings_of(built)
    assert "prior" not in settings
    again = configure.method(name, json.loads(json.dumps(settings)), lambda: shrink)
    assert settings_of(again) == settings and type(again) is type(built)


def test_every_method_is_a_frozen_dataclass() -> None:
    for name in plugins.names("methods"):
        cls = plugins.get("methods", name)
        assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen, name  # type: ignore[attr-defined]


def test_operator_gets_shape_and_pixel_filled_in() -> None:
    A: Any = operator_for_image("parallel_beam_ct", (16, 16), 2.0, {"n_views": 5, "arc": math.pi})
    assert A.in_shape == (16, 16) and A.pixel_mm == 2.0 and len(A.angles) == 5
    gray = operator_for_image("grayscale", (3, 4, 5), 1.0, {})
    assert gray.in_shape == (3, 4, 5)
    masking = operator_for_image("masking", (4, 6), 1.0, {"keep": 1.0})
    assert masking.in_shape == (4, 6) and bool(masking(torch.ones(4, 6)).all())


def test_unknown_operator_arguments() -> None:
    with pytest.raises(ValueError, match=r"'parallel_beam_ct' has no setting 'n_view'\. Did you mean 'n_views'\?"):
        operator_for_image("parallel_beam_ct", (16, 16), 1.0, {"n_view": 5})
    with pytest.raises(ValueError, match=r"no operator is named 'parallel_beam'\. Did you mean 'parallel_beam_ct'\?"):
        operator_for_image("parallel_beam", (16, 16), 1.0, {})
