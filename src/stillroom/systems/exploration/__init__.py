"""Systems that turn experience into curiosity, for agents and robots. Their entries in the catalogue."""

from __future__ import annotations

from stillroom.systems.entry import System

SYSTEMS: tuple[System, ...] = (
    System(
        slug="rnd-agv",
        title="Random Network Distillation Based Deep Reinforcement Learning for AGV Path Planning",
        arxiv="2404.12594",
        year=2024,
        kind="exploration",
        module="stillroom.systems.exploration.rnd_agv",
        needs="a vectorised environment, an algorithm of Stable-Baselines3",
        gives="a reward for new states; a policy",
    ),
)
