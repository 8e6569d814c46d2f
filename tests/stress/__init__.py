"""Faults: kills, power cuts, flipped bits, a full disk. The long runs are marked `stress`."""
