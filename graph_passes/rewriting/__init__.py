"""How does a graph change: factors in, dead nodes out, everything else as it was?

Passes of ``onnx_ir``, which work on their own and in any ``Sequential`` or ``PassManager``. Each
says truly whether it modified the model, and does nothing to one that is as it should be.
"""
