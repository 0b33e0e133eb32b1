"""Configurations: dataclasses that read from and write to plain data and YAML."""
