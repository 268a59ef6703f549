"""Subtitle files, read back by strict grammars of SubRip and WebVTT."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxkit.cli.subtitles import subtitles
from onnxkit.errors import InputError

TIME = r"(\d{2,}):([0-5]\d):([0-5]\d)"
SRT_CUE = re.compile(rf"(\d+)\n{TIME},(\d{{3}}) --> {TIME},(\d{{3}})\n([^\n]+)\n")
VTT_CUE = re.compile(rf"{TIME}\.(\d{{3}}) --> {TIME}\.(\d{{3}})\n([^\n]+)\n")
SEGMENTS = st.lists(
    st.fixed_dictionaries(
        {
            "start_s": st.floats(0, 400_000),
            "end_s": st.floats(0, 400_000),
            "text": st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
            | st.just("a --> b & <c>"),
        }
    ),
    max_size=5,
)


def milliseconds(parts):
    hours, minutes, seconds, rest = map(int, parts)
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest


def check_cues(cues, segments, unescape):
    said = [segment for segment in segments if segment["text"].split()]
    assert len(cues) == len(said)
    for cue, segment in zip(cues, said, strict=True):
        start, end = milliseconds(cue[:4]), milliseconds(cue[4:8])
        assert start == round(segment["start_s"] * 1000)
        assert end == max(round(segment["end_s"] * 1000), start + 1)
        assert unescape(cue[8]) == " ".join(segment["text"].split())


@given(SEGMENTS)
def test_srt_is_numbered_blocks_apart_by_a_blank_line(segments):
    text = subtitles({"segments": segments}, "srt")
    blocks = [block + "\n" for block in text.removesuffix("\n").split("\n\n")] if text else []
    found = [SRT_CUE.fullmatch(block) for block in blocks]
    assert all(found)
    assert [int(one[1]) for one in found] == list(range(1, len(found) + 1))
    assert all("-->" not in one[10] for one in found)
    for segment in segments:
        segment["text"] = segment["text"].replace("-->", "->")
    check_cues([one.groups()[1:] for one in found], segments, str)


@given(SEGMENTS)
def test_vtt_has_a_header_and_escapes_markup(segments):
    text = subtitles({"segments": segments}, "vtt")
    header, *blocks = text.removesuffix("\n").split("\n\n")
    assert header == "WEBVTT"
    found = [VTT_CUE.fullmatch(block + "\n") for block in blocks]
    assert all(found)
    assert all(not re.search(r"[<>]|-->", one[9]) for one in found)
    check_cues([one.groups() for one in found], segments, html.unescape)


def test_both_by_hand():
    record = {"segments": [{"start_s": 0.0, "end_s": 2.5, "text": " Good morning. "},
                           {"start_s": 3661.02, "end_s": 3661.02, "text": "R&D"}]}  # fmt: skip
    assert subtitles(record, "srt") == (
        "1\n00:00:00,000 --> 00:00:02,500\nGood morning.\n\n2\n01:01:01,020 --> 01:01:01,021\nR&D\n"
    )
    assert subtitles(record, "vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nGood morning.\n\n01:01:01.020 --> 01:01:01.021\nR&amp;D\n"
    )


def test_a_record_without_segments():
    with pytest.raises(InputError, match="need timestamps"):
        subtitles({"text": "a"}, "srt")
