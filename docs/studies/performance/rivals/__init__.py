"""Tools that cannot be installed beside this project, each run by the Python of its environment.

==================  ================================================================================
``environment``     virtual environments with pinned versions, made once, in the cache folder
``openvino_int8``   a script for OpenVINO's: rounds by NNCF, times beside ONNX Runtime
``onnxsim_pruning`` a script for onnxsim's: takes neurons out, and rounds
``rows``            asks them, and makes rows and lines of the answers
==================  ================================================================================

The scripts import nothing of this project. They read one JSON file and write another.
"""
