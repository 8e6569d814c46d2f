"""Models: the dense parts that turn dense features and pooled embeddings into a logit."""
