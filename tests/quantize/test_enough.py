import numpy as np
import pytest

from onnxkit.quantize.calibration.data import DataSet
from onnxkit.quantize.calibration.enough import warn_of_statistics
from onnxkit.quantize.input_statistics import InputStatistics
from tests.heard import Heard


def statistics(rows):
    rows = rows.astype(np.float32)
    square = (rows**2).mean(axis=0)
    return InputStatistics(
        count=len(rows), absmax=abs(rows).max(axis=0), mean=rows.mean(axis=0), mean_square=square, sample=rows
    )


def warned(*layers, samples, random=False):
    data = DataSet(
        source="c.jsonl",
        samples=({"text": "a"},) * samples,
        total=samples,
        task=None,
        model=None,
        random=random,
    )
    heard = Heard()
    warn_of_statistics(map(statistics, layers), data, heard)
    return heard.warnings


def rows(count, width, *, distinct=None):
    found = np.random.default_rng(0).normal(size=(count, width))
    return found if distinct is None else found[np.arange(count) % distinct]


def test_one_short_sample_is_too_few_and_a_number_would_do():
    (text,) = warned(rows(6, 512), samples=1)
    assert text == (
        "1 calibration sample is too few (6 different rows for layers of 512 inputs); about 32 would do"
    )


def test_samples_that_are_the_same_are_too_alike():
    (text,) = warned(rows(320, 128, distinct=5), samples=64)
    assert text.startswith("64 calibration samples are too alike (5 different rows for layers of 128 inputs)")


@pytest.mark.parametrize("width", [8, 128, 8192])
def test_enough_tokens_say_nothing(width):
    assert not warned(rows(256, width), samples=32)


def test_a_pooled_layer_does_not_speak_for_the_others():
    layers = [rows(256, 128)] * 3 + [rows(4, 1024)]
    assert not warned(*layers, samples=4)
    assert not warned(rows(4, 1024), samples=4)  # of a convolutional network nothing else is a product


def test_random_samples_are_named_and_no_statistics_are_nothing_to_say():
    assert "random data" in warned(rows(6, 512), samples=1, random=True)[0]
    assert not warned(samples=1)
