"""What `tools/faults.py` puts in the way of each command, and the targets that tests/faults fuzzes too."""
