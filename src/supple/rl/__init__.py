"""Reinforcement learning: soft actor-critic at a high replay ratio, with the library's methods on its networks."""
