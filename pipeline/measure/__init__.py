"""How close is a candidate to its reference, how fast, and does it pass the gates?"""
