"""Random network distillation for path planning: a vehicle that is paid for seeing new places finds its goal sooner.

For whom: you train a vehicle, robot or agent with sparse rewards by an algorithm of Stable-Baselines3, and it never
meets the reward: wrap its vectorised environment in `stillroom.explore.IntrinsicReward`. For whom else: you need small
warehouse floors with walls, a moving goal and ray sensors to test exploration on.

Not for whom: rewards are dense (the bonus only distracts); observations flicker without end (a noisy sensor is new for
ever: leave it out with `columns`); states are images (bring a convolutional target and predictor).

Citation: Huilin Yin, Shengkai Su, Yinjia Lin, Pengju Zhen, Karin Festl, Daniel Watzenig. Random Network Distillation
Based Deep Reinforcement Learning for AGV Path Planning. 2024. arXiv:2404.12594.

Deviations from the paper: its simulator was never published, so that the floors here are our own specification, in the
spirit of the paper's four scenes; no number of it can be reproduced, only the direction. Normalisation of states and of
the bonus follows the reference recipe of random network distillation, since the paper's summary names none and the
weight of the bonus means nothing without it. Network sizes, the predictor's optimiser and the strength 1 of the sum are
unconfirmed and are arguments. The bonus of a step is scaled by the deviation known at that step rather than once per
rollout, so that any algorithm of Stable-Baselines3 can be used. One value head and one discount, as in the paper; two
heads are an option (`curious_ppo(two_heads=True)`).
"""

from stillroom.explore import IntrinsicReward, LearnNovelty, RandomNetworkDistillation
from stillroom.systems.exploration.rnd_agv.environment import AGVEnv
from stillroom.systems.exploration.rnd_agv.motion import Vehicle, cast_rays, step_vehicle
from stillroom.systems.exploration.rnd_agv.recipe import curious_ppo, paper, recipe
from stillroom.systems.exploration.rnd_agv.scenes import SCENES, Scene
from stillroom.systems.exploration.rnd_agv.vectorised import AGVVecEnv

__all__ = [
    "SCENES",
    "AGVEnv",
    "AGVVecEnv",
    "IntrinsicReward",
    "LearnNovelty",
    "RandomNetworkDistillation",
    "Scene",
    "Vehicle",
    "cast_rays",
    "curious_ppo",
    "paper",
    "recipe",
    "step_vehicle",
]
