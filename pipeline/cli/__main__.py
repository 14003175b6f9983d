"""Lets ``python -m compress_onnx.pipeline.cli`` do what ``compress-onnx`` does."""

from compress_onnx.pipeline.cli import main

main()
