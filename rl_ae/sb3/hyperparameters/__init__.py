"""Settings for rl-baselines3-zoo, one file an algorithm; see :mod:`rl_ae.sb3.zoo`."""
