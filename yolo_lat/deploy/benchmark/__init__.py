"""Benchmark: models beside one another on one machine, by one written procedure."""
