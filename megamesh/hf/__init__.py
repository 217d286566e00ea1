"""Hugging Face: our models written for transformers, and transformers' models read into ours.

both ways            names.py: parameters side by side; tensor_files.py, staging.py; memory.py
checkpoint ──▶ HF    exporting/ (begin at export.py)
HF ──▶ checkpoint    importing/ (begin at importing.py)
travels with exports remote/, which needs nothing of MegaMesh
"""
