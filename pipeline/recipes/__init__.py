"""How is everything that a recipe says carried out: one run, or a table of variants?"""
