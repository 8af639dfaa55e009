"""Devices, processes, optimizer slots and files: what training runs on."""
