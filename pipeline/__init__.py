"""From a model to a compressed, validated, measured and bundled ONNX model.

Each step is a module of its own that works on anybody's ONNX files; ``pipeline.recipes.run`` chains
them as a recipe says, and ``pipeline.cli`` is the command line over both.
"""
