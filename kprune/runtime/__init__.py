"""The devices, processes, optimizer slots and files that training uses."""
