"""Mediated NVMe virtualization in user space."""
