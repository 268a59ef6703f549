"""Translation: text to text between two languages."""

from __future__ import annotations

from onnxkit.tasks.text2text_generation import Text2TextGeneration


class Translation(Text2TextGeneration):
    """Records as of `Text2TextGeneration`; a model of several languages must be told which."""

    name = "translation"
    languages_needed = True
