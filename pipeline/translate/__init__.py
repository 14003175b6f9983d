"""How is an encoder-decoder exported, compressed in parts, and run as a whole?"""
