"""The data path: Cython that runs without the GIL, and the control plane's handles on it."""
