"""The worker's side: tables whose rows live on shards."""
