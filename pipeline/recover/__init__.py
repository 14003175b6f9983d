"""How are the factors trained to reproduce the outputs of the original?"""
