"""How does a compressed model get to the people who run it?

A *package* is a model with its tokenizer and configuration, such as ``run`` leaves. A *target* is a
place where models go, with its own idea of folders, names and configuration.

    package  --target-->  a folder that the target loads, with provenance and a manifest
"""
