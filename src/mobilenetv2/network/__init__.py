"""The network; needs PyTorch alone."""
