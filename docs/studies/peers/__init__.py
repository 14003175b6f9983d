"""Published low-rank methods side by side with ours: ``python -m studies.peers``.

Each method is written here from its publication, on the same factorizations, calibration data,
budget and validation as our own, so that a difference in the table is a difference of methods. They
are for comparison only: none is registered, and none is on the command line.
"""
