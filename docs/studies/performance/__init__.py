"""Ours beside what a user has without us: ``python -m studies.performance [MODEL.onnx DATA.npz]``.

==============  ====================================================================================
``subject``     the model, what is known about it, and the samples that chose nothing
``rows``        what a table has rows of, and what writes each model
``table``       all rows measured, interleaved, and written down
``rivals``      tools that need an environment of their own
``shapes``      full-size models of random weights, for speed, memory and size
==============  ====================================================================================
"""
