"""Mediated NVMe virtualization in user space."""

__version__ = "0.1.0"
