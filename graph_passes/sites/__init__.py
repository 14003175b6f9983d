"""Which linear layers does a graph have, and why are the other products none?

:func:`.find.find_sites` answers both; :mod:`.linear_site` is what a layer is, :mod:`.weights` how
its numbers are found and read.
"""
