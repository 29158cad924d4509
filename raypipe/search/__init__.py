"""The staged hyperparameter search: Optuna proposes trials, a scheduler stops them, Ray Tune runs them.

There is one stage for each component: flow, denoiser, diffusion and joint. The best trials of a stage, its finalists,
are retrained and used by the next stages.
"""
