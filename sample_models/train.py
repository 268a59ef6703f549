"""Train the sample models: ``python -m sample_models.train [name ...]``; without a name, all of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from importlib import import_module
from typing import cast

from sample_models.common import ROOT, Sample, seed_everything, write_overview

NAMES = ("langid-bert", "digits-vit", "pydoc-gpt2", "numbers-t5")


def load(name: str) -> Sample:
    """Import the module that trains the model ``name``."""
    return cast(Sample, import_module(f"sample_models.{name.replace('-', '_')}"))


def main(arguments: Sequence[str]) -> int:
    """Train the named models into their directories; return the exit status."""
    unknown = [name for name in arguments if name not in NAMES]
    if unknown:
        print(f"no sample model {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in arguments or NAMES:
        started = time.perf_counter()
        seed_everything()
        sample = load(name)
        directory = ROOT / name
        directory.mkdir(exist_ok=True)
        print(f"{name}: training", flush=True)
        result = sample.train(directory, sample.splits())
        spent = time.perf_counter() - started
        print(f"{name}: {result.metric} {result.value:.4f} on {result.samples} samples, {spent:.0f} s in all")
    write_overview(load(name).CARD for name in NAMES)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
