"""Training of HyperLLaVA models: the two stages of the paper, and the recipe of the bundled one."""
