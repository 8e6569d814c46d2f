"""Eviction policies, one a file: see `storage.policy` for what they have in common."""
