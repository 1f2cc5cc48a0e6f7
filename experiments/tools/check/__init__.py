"""What `gpu_check` measures, an item a module; `items` lists them."""
