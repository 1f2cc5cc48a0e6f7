"""The train step, the loop around it, and the folder that a run lives in."""
