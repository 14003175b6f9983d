"""Graph passes that rewrite linear layers of ONNX models into low-rank factor chains.

Data flows one way::

    load_model -> find_sites -> (calibration) -> make_plan -> LowRankPass -> save_model

``graph_passes.factorization`` is pure numerics and never imports onnx; nothing in this package
imports ONNX Runtime or torch, so that it can be used wherever ``onnx_ir`` can.
"""
