"""What goes over the wire between workers and shards."""
