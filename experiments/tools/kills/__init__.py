"""What a training is struck with, and whether it lost anything."""
