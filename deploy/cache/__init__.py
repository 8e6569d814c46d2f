"""``terrace cache``: what caches of given sizes would hit."""
