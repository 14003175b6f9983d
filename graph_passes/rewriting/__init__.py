"""How does a graph change: factors in, dead nodes out, everything else as it was?"""
