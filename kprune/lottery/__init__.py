"""Lottery tickets: snapshots, rewinding, levels, tickets in files."""
