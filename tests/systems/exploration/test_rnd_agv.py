"""The vehicle, its floors, and curiosity on them."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3
from stable_baselines3.common.env_util import make_vec_env

from stillroom.systems.exploration.rnd_agv import (
    SCENES,
    AGVEnv,
    AGVVecEnv,
    Scene,
    Vehicle,
    cast_rays,
    curious_ppo,
    paper,
    recipe,
    step_vehicle,
)
from stillroom.systems.exploration.rnd_agv.fleet import Fleet
from stillroom.systems.exploration.rnd_agv.motion import touches
from stillroom.systems.exploration.rnd_agv.recipe import Deal, success


def floor(**changes):
    options = {"name": "test", "width": 3.0, "height": 2.0, "obstacles": (), "start": (0.3, 0.3, 0.6, 0.6)}
    return Scene(**(options | {"goal": (2.5, 1.5), "max_steps": 50} | changes))


class TestMotion:
    def test_full_speed_ahead(self):
        pose, speed = np.array([[0.0, 0.0, 0.0]]), np.zeros(1)
        for _ in range(5):  # 0.2 m/s more a step up to 1
            pose, speed = step_vehicle(pose, speed, np.array([[1.0, 0.0]]))
        assert speed[0] == pytest.approx(1.0)
        np.testing.assert_allclose(pose[0], [0.1 * (0.2 + 0.4 + 0.6 + 0.8 + 1.0), 0, 0], atol=1e-12)

    def test_it_turns_before_it_moves_and_headings_wrap(self):
        pose, _ = step_vehicle(np.array([[0.0, 0.0, np.pi - 0.05]]), np.ones(1), np.array([[1.0, 1.0]]))
        assert pose[0, 2] == pytest.approx(-np.pi + 0.1)
        np.testing.assert_allclose(pose[0, :2], 0.1 * np.array([np.cos(pose[0, 2]), np.sin(pose[0, 2])]))

    @pytest.mark.parametrize("distance", [0.4, 1.7, 2.9])
    def test_rays_measure_the_distance_to_a_wall(self, distance):
        wall = np.array([[2.0, -5.0, 3.0, 5.0]])
        found = cast_rays(np.array([[2.0 - distance, 0.0]]), np.zeros(1), wall, rays=8, max_range=3.0)
        assert found[0, 0] == pytest.approx(distance / 3)
        assert found[0, 1] == pytest.approx(min(distance * 2**0.5 / 3, 1))
        assert found[0, 4] == 1.0  # the other way there is nothing

    def test_inside_a_box_a_ray_sees_nothing(self):
        assert (cast_rays(np.array([[0.5, 0.5]]), np.zeros(1), np.array([[0.0, 0.0, 1.0, 1.0]])) == 0).all()


class TestFloors:
    @pytest.mark.parametrize("name", SCENES)
    def test_the_vehicle_never_enters_a_box(self, name):
        fleet = Fleet(SCENES[name], Vehicle(), 500)
        random = np.random.default_rng(0)
        fleet.begin(np.arange(500), random)
        actions = random.uniform(-1, 1, (500, 2))
        collisions = 0
        for step in range(50):  # 500 copies, 50 decisions of 4 steps: 100,000 steps; held actions run into walls
            actions = random.uniform(-1, 1, (500, 2)) if step % 8 == 0 else actions
            collisions += int(fleet.act(actions)[3].sum())
            assert not touches(fleet.pose[:, :2], fleet.scene.boxes, fleet.vehicle.radius).any()
        assert collisions > 100

    def test_there_is_a_detour(self):
        scene = SCENES["simple_static"]
        straight = np.linspace((0.6, 2.0), scene.goal, 50)
        assert touches(straight, scene.boxes, scene.radius).any()

    def test_a_start_inside_an_obstacle_is_refused(self):
        with pytest.raises(ValueError, match=r"starts in \(0.3, 0.3, 0.6, 0.6\) can overlap an obstacle or a wall"):
            floor(obstacles=[(0.5, 0.5, 1.0, 1.0)])
        with pytest.raises(ValueError, match="can overlap an obstacle or a wall"):
            floor(start=(0.05, 0.3, 0.6, 0.6))

    def test_a_goal_behind_a_wall_is_refused(self):
        with pytest.raises(ValueError, match=r"the goal \(2.5, 1.5\) cannot be reached .* radius 0.15: open a passage"):
            floor(obstacles=[(1.5, 0.0, 1.6, 1.8)])  # 0.2 m are left, too narrow for a vehicle 0.3 m wide
        assert len(floor(obstacles=[(1.5, 0.0, 1.6, 1.6)]).cells) > 50

    def test_goals_go_to_and_fro(self):
        scene = SCENES["simple_dynamic"]
        np.testing.assert_allclose(scene.goal_at(np.array([0, 50, 100])), [[3.5, 1.0], [3.5, 3.0], [3.5, 1.0]])

    def test_unknown_scenes_are_refused(self):
        with pytest.raises(ValueError, match="unknown scene 'nowhere'; there are simple_static"):
            AGVEnv("nowhere")
        with pytest.raises(ValueError, match=r"was checked for vehicles of radius 0.15, given one of 0.5"):
            AGVEnv(floor(), vehicle=Vehicle(radius=0.5))


class TestEnvironment:
    @pytest.mark.parametrize("name", SCENES)
    def test_the_checks_of_gymnasium_and_stable_baselines(self, name):
        check_env(AGVEnv(name, max_steps=20, render_mode="rgb_array"), skip_render_check=True)
        check_env_of_sb3(AGVEnv(name, max_steps=20, observe_goal=False))

    def test_the_goal_is_paid_and_ends_the_episode(self):
        env = AGVEnv(floor(goal=(0.9, 0.45), start=(0.45, 0.45, 0.45, 0.45)))
        env.reset(seed=0)
        env.fleet.pose[0, 2] = 0.0
        _, reward, terminated, truncated, info = env.step(np.array([1.0, 0.0], np.float32))
        assert (terminated, truncated, info["collision"]) == (True, False, False)
        assert reward == pytest.approx(1 - 0.0005)

    def test_a_collision_costs_and_stops_but_goes_on(self):
        env = AGVEnv(floor(start=(0.2, 0.5, 0.2, 0.5)))
        env.reset(seed=0)
        env.fleet.pose[0, 2] = np.pi - 1e-9
        _, reward, terminated, _, info = env.step(np.array([1.0, 0.0], np.float32))
        assert info["collision"]
        assert not terminated
        assert env.fleet.speed[0] == 0
        assert reward == pytest.approx(-0.0105)
        env = AGVEnv(floor(start=(0.2, 0.5, 0.2, 0.5)), terminal_collision=True)
        env.reset(seed=0)
        env.fleet.pose[0, 2] = np.pi - 1e-9
        assert env.step(np.array([1.0, 0.0], np.float32))[2]

    def test_time_runs_out(self):
        env = AGVEnv(floor(max_steps=3))
        env.reset(seed=0)
        ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(3)]
        assert ends == [(False, False), (False, False), (False, True)]

    def test_the_picture_shows_goal_and_vehicle(self):
        env = AGVEnv("simple_static", render_mode="rgb_array")
        env.reset(seed=0)
        picture = env.render()
        assert picture.shape == (200, 200, 3)
        assert {tuple(colour) for colour in picture.reshape(-1, 3).tolist()} == {
            (255, 255, 255), (110, 110, 110), (90, 180, 90), (60, 90, 200),
        }  # fmt: skip
        with pytest.raises(ValueError, match="render_mode must be None or \"rgb_array\", given 'human'"):
            AGVEnv(render_mode="human")


class TestVectorised:
    def test_it_is_the_single_floor_many_times(self):
        scene = floor(max_steps=7)
        venv, env = AGVVecEnv(scene, 3, seed=0), AGVEnv(scene)
        venv.reset()
        env.reset(seed=0)
        env.fleet.pose[0] = venv.fleet.pose[1]
        random = np.random.default_rng(0)
        for step in range(7):
            actions = random.uniform(-1, 1, (3, 2))
            states, rewards, dones, infos = venv.step(actions)
            state, reward, terminated, truncated, info = env.step(actions[1])
            seen = infos[1]["terminal_observation"] if dones[1] else states[1]
            np.testing.assert_array_equal(seen, state)
            assert rewards[1] == pytest.approx(reward)
            assert infos[1]["collision"] == info["collision"]
            assert dones[1] == (terminated or truncated) == (step == 6)
        assert infos[1]["TimeLimit.truncated"]
        assert infos[1]["episode"]["l"] == 7
        assert (venv.fleet.steps == 0).all()

    def test_visits_and_first_contact_are_counted(self):
        venv = AGVVecEnv(floor(goal=(0.9, 0.45), start=(0.45, 0.45, 0.45, 0.45)), 2)
        venv.reset()
        venv.fleet.pose[:, 2] = 0
        assert venv.first_contact is None
        venv.step(np.array([[0.0, 0.0], [0.0, 0.0]]))
        assert venv.visited == {(1, 1)}
        venv.step(np.array([[1.0, 0.0], [0.0, 0.0]]))
        assert venv.first_contact == 4
        assert 0 < venv.coverage < 0.1


def test_chance_hardly_ever_finds_the_goal():
    assert success(None, AGVVecEnv("simple_static", 64, max_steps=200, seed=1), episodes=128) < 0.05


def test_a_control_pays_the_same_to_others():
    dealt = Deal(0)(np.arange(8.0))
    assert sorted(dealt.tolist()) == list(range(8))
    assert dealt.tolist() != list(range(8))


def test_actions_that_cannot_steer_are_refused():
    class Buttons(AGVEnv):
        def __init__(self):
            super().__init__(floor())
            self.action_space = gymnasium.spaces.Discrete(3)

    with pytest.raises(ValueError, match=r"needs a Box of actions, given Discrete\(3\)"):
        curious_ppo(make_vec_env(Buttons))


def test_two_heads_are_an_option():
    model, callback = curious_ppo(
        AGVVecEnv(copies=4, max_steps=20), n_steps=16, batch_size=32, prepare=40, two_heads=True, strength=0.5
    )
    model.learn(64, callback=callback)
    assert (model.gamma, callback.intrinsic_weight, callback.wrapper.strength) == (0.999, 0.5, 0.0)
    assert callback.wrapper.learned == 1


def test_the_recipe_and_the_papers_settings_run_in_small():
    results = recipe().tiny().run([0], progress=False, device="cpu")
    assert results["arms"]["shuffled"]["role"] == "control"
    assert {claim["on"] for claim in results["claims"]} == {"coverage", "first_contact", "success", "random_success"}
    assert 0 < results["arms"]["rnd"]["mean"] <= 1
    given = paper("complex_dynamic")
    assert given.arms["rnd"].keywords["max_steps"] == 4000
    assert given.arms["rnd"].keywords["steps"] == 1_000_000
    short = paper(floor(max_steps=10)).tiny().run([0], progress=False, device="cpu")
    assert 0 < short["arms"]["rnd"]["mean"] <= 1
