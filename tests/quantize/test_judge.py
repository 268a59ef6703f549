"""Joining the agreement of several batches."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from onnxkit.artifact import ModelDir
from onnxkit.measure.agreement import compare
from onnxkit.quantize.judge import join_outputs, yardstick_without_data
from onnxkit.quantize.search.bench import joined_sqnr
from tests.model_dirs import table, text_dir
from tests.quantize.graphs import random


def test_batches_join_to_what_the_whole_gives():
    right = np.sign(random(12, 5, 8)).astype(np.float32)  # the same power everywhere
    got = right + random(12, 5, 8, seed=1, scale=0.1)
    cuts = [slice(0, 2), slice(2, 9), slice(9, 12)]
    joined = join_outputs([("y", compare(right[cut], got[cut])) for cut in cuts])
    whole = compare(right, got)
    assert [one.output for one in joined] == ["y"]
    assert joined[0].cosine == pytest.approx(whole.token_cosine)
    assert joined[0].sqnr_db == pytest.approx(whole.sqnr_db)
    assert joined[0].max_abs == whole.max_abs


def test_outputs_stay_apart_and_equal_ones_are_infinitely_good():
    same = compare(random(2, 4), random(2, 4))
    other = compare(random(2, 4), random(2, 4, seed=1))
    joined = join_outputs([("a", same), ("b", other)])
    assert [one.output for one in joined] == ["a", "b"]
    assert math.isinf(joined_sqnr([same]))
    assert joined[1].sqnr_db < 10


@pytest.mark.parametrize(("side", "judged"), [("right", False), ("left", True)])
def test_the_padding_that_the_tokenizer_never_makes_is_not_judged(tmp_path, side, judged):
    """A classifier that reads the first token reads a padding token under left padding."""
    folder = text_dir(tmp_path, "text-classification", table(4), outputs=("logits",))
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "padding_side": side}))
    cases = yardstick_without_data(ModelDir.open(folder), 0).cases["model"]
    assert ("left padding" in dict(cases)) is judged
    assert "right padding" in dict(cases)
