"""Devices, processes, optimizer slots and files: what a training runs on."""
