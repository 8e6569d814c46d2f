"""Benchmarks: run by hand or `make bench`, asserted nowhere."""
