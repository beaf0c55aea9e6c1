"""Predict pictures with the model of this package, and print what it found as JSON, one line a picture.

python runtimes/python/example.py street.jpg another.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from model_wrapper import ModelWrapper  # type: ignore[import-not-found]  # beside this file, in a package

PACKAGE = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict pictures with the model of this package.")
    parser.add_argument("pictures", nargs="+", type=Path, help="JPEG, PNG, WebP or BMP files")
    parser.add_argument("--confidence-threshold", type=float, help="the model's own where left out")
    arguments = parser.parse_args()
    model = ModelWrapper(PACKAGE)
    for picture in arguments.pictures:
        try:
            answer = model.predict(picture, confidence_threshold=arguments.confidence_threshold)
        except (OSError, ValueError) as exc:
            sys.exit(f"{picture}: {exc}")
        sys.stdout.write(json.dumps({"picture": str(picture), **answer}) + "\n")


if __name__ == "__main__":
    main()
