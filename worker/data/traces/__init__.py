"""The formats of access traces, one a file; `worker.data.trace` chooses among them."""
