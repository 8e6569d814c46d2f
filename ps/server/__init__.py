"""The shard's side: sessions, the gRPC service, and what keeps it safe."""
