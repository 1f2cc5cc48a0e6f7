"""What `gpu_check` measures, one item per module; `items` lists them."""
