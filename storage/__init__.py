"""Where rows live: keys, row layout, tiers from HBM over RAM to SSD, and their replay."""
