"""`onnxkit run` on recordings: what it prints, and what it refuses with which code."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path

import numpy as np
import pytest

from onnxkit import Predictor
from onnxkit.cli.app import execute
from onnxkit.cli.console import Console
from onnxkit.cli.subtitles import subtitles
from onnxkit.errors import UsageError
from tests.speech import RATE, ctc_dir, tone


def save(path: Path, samples: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", "NONE"))
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ctc_dir(tmp_path_factory.mktemp("model"))[0]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return save(tmp_path_factory.mktemp("audio") / "a.wav", tone(3.0, seed=4))


def run(*words):
    out, err = io.StringIO(), io.StringIO()
    code = execute(["run", *map(str, words)], Console(out=out, err=err))
    return code, out.getvalue(), err.getvalue()


def test_records_and_subtitles(model, recording):
    [expected] = Predictor(model, timestamps=True)([recording])
    code, out, _ = run(model, recording, "--timestamps", "--json")
    assert (code, json.loads(out)["result"]) == (0, [expected])
    for kind in ("srt", "vtt"):
        assert run(model, recording, "--subtitles", kind)[:2] == (0, subtitles(expected, kind))
    code, out, _ = run(model, recording, "--timestamps")
    first = expected["segments"][0]
    assert f"{first['start_s']:.2f}-{first['end_s']:.2f}" in out
    assert first["text"].split()[0] in out


@pytest.mark.parametrize("option", [["--language", "de"], ["--translate"], ["--num-beams", "2"]])
def test_an_option_of_whisper_is_refused_with_the_reason(model, recording, option):
    code, out, err = run(model, recording, *option)
    assert (code, out) == (2, "")
    assert err == (
        f"error: {option[0]} does not apply: this is a CTC model (it spells what it hears: no language "
        "tokens, no translation, no generation)\n"
    )
    with pytest.raises(UsageError, match=r"^a CTC model .* has no option 'language'; it takes timestamps$"):
        Predictor(model, language="de")


def test_a_folder_of_recordings(model, recording):
    save(recording.parent / "b.wav", tone(1.0))
    code, out, _ = run(model, "--file", recording.parent, "--jsonl")
    assert code == 0
    assert [json.loads(line)["duration_s"] for line in out.splitlines()] == [3.0, 1.0]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["none.wav"], 3, "none.wav: no such sound file"),
        (["bad.wav"], 3, "bad.wav: no audio in a known format"),
        (["empty.wav"], 3, "empty.wav: an empty file"),
        (["good.wav", "--language", "de"], 2, "--language does not apply"),
        (["good.wav", "--subtitles", "ass"], 2, "unknown subtitles 'ass'"),
        (["good.wav", "good.wav", "--subtitles", "srt"], 2, "a subtitle file is of one recording"),
        (["good.wav", "--subtitles", "srt", "--json"], 2, "--subtitles does not apply"),
        (["--question", "a", "--context", "b"], 2, "--question does not apply"),
    ],
)
def test_what_is_refused(model, tmp_path, monkeypatch, words, code, says):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "good.wav", tone(0.5))
    (tmp_path / "bad.wav").write_bytes(b"this is text")
    (tmp_path / "empty.wav").touch()
    found, _, err = run(model, *words)
    assert found == code, err
    assert says in err
    assert err.count("error:") == 1
