"""The code that travels with exports and needs nothing of MegaMesh."""
