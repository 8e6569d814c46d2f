"""Everything that starts something: the `terrace` command, launcher and manifests."""
