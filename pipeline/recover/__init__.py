"""How is a compressed model trained to reproduce the outputs of the original?"""
