"""What becomes of each weight: by which method, at which rank, and what is lost?"""
