"""The history as an in-toto statement, for tools that check provenance."""

from __future__ import annotations

from typing import Any

from onnxkit.artifact.manifest import Manifest
from onnxkit.report import to_plain


def to_in_toto(manifest: Manifest) -> dict[str, Any]:
    """Return the last stage as an in-toto v1 statement with a SLSA v1 provenance predicate.

    Subjects are the files; the material is the stage's input. Formats: in-toto Attestation
    Framework, Statement v1; SLSA Provenance v1.
    """
    last = manifest.history[-1] if manifest.history else None
    algorithm, _, value = (last.input_digest if last else "").partition(":")
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": name, "digest": {"sha256": entry.sha256}}
            for name, entry in sorted(manifest.files.items())
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"onnxkit/{last.stage if last else 'unknown'}",
                "externalParameters": to_plain({"argv": last.argv, "options": last.options}) if last else {},
                "resolvedDependencies": [{"digest": {algorithm: value}}] if value else [],
            },
            "runDetails": {
                "builder": {"id": "onnxkit", "version": dict(last.versions) if last else {}},
                "metadata": {"finishedOn": last.created} if last else {},
            },
        },
    }
