"""The `onnxkit` command, and `python -m onnxkit`."""

from __future__ import annotations

try:
    from onnxkit.cli import interruption
except KeyboardInterrupt:
    raise SystemExit(130) from None


def main() -> None:
    """Run the command line of this process; a signal while that is still imported ends it without a word."""
    interruption.at_once()
    from onnxkit.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
