"""How does a model become smaller: what is learned once, and what a budget makes of it?"""
