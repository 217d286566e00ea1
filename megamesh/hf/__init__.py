"""Hugging Face: our models written for transformers, and transformers' models read into ours.

both ways            names.py, configs.py: parameters and configurations side by side; staging.py; memory.py, bound.py
checkpoint ──▶ HF    export.py (begin here), source.py, weights.py, facts.py and card.py, compare.py and sample.py
HF ──▶ checkpoint    importing.py (begin here), tensor_files.py, pretrained.py, imported_*.py, import_check.py
travels with exports {configuration,modeling,blocks,recursion}_megamesh.py, which need nothing of MegaMesh
"""
