"""How are models, plans and caches read safely and written completely or not at all?"""
