"""Data sets: what they are, how they are read, and how they reach the trainer."""
