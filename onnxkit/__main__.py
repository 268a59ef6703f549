"""`python -m onnxkit`: the same as the `onnxkit` command."""

from __future__ import annotations

from onnxkit.cli.app import main

if __name__ == "__main__":
    main()
