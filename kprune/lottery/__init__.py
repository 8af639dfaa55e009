"""Lottery tickets: snapshots, rewinding, levels, and ticket files."""
