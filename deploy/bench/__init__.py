"""``terrace bench``: how fast Terrace is here, beside hardware and peers in the same run."""
