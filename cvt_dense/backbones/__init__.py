"""The models as toolkits take them: registered in mmengine, and in timm."""
