"""Configuration: YAML files → one frozen, validated `RunConfig` of small sections.

Pure: reads nothing but the YAML files and needs no process group.
"""
