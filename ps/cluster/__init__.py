"""Workers that share one store: each has a part of the rows, and all have the same steps."""
