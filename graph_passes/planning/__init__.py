"""What becomes of each weight: by which method, at which rank, and what is lost?

A request (:mod:`.request`) becomes a plan (:mod:`.plan`) in :mod:`.planner`; :mod:`.fitting` says
whether a plan fits a model, :mod:`.factoring` carries it out in numbers.
"""
