"""The models in plain PyTorch and timm's layers: what they share, and a folder for each family."""
