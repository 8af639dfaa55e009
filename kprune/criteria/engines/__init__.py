"""Machinery behind the criteria: derivatives, linearized copies, precision."""
