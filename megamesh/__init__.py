"""MegaMesh: pretraining of recursive (looped) transformers with Memory-as-State-Highways, at cluster scale."""

__version__ = "0.1.0"
