"""The same network, run by other libraries than PyTorch."""
