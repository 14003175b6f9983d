"""Where do two graphs of one model part, and why?

trace      every value of a graph, computed without ONNX Runtime's optimizations
locate     the first node whose inputs are as in the other graph, and whose output is not
cause      what is different there
depth      how far values are from the original's, from the first layer to the last
"""
