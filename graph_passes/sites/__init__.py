"""Which linear layers does a graph have, and why are the other products none?"""
