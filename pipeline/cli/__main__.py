"""Lets ``python -m pipeline.cli`` do what ``compress-onnx`` does."""

from pipeline.cli import main

main()
