"""Moments, advantages, novelty and the wrapper that pays for it."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from stillroom.explore import (
    DiscountedScale,
    IntrinsicReward,
    LearnNovelty,
    RandomNetworkDistillation,
    RunningMoments,
    TwoHeads,
    generalised_advantages,
    mlp,
)
from stillroom.losses import novelty_loss


class Corridor(gymnasium.Env):
    """Walk to the right; an episode is five steps, its last state is 5."""

    observation_space = gymnasium.spaces.Box(-10, 10, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return np.array([0], np.float32), {}

    def step(self, action):
        self.place += 1
        return np.array([self.place], np.float32), 1.0, self.place == 5, False, {}


class Recorded:
    """A novelty that pays the state itself and remembers what it was shown."""

    def __init__(self):
        self.learned, self.paid = [], []

    def prepare(self, states):
        self.prepared = states

    def bonus(self, states):
        self.paid.append(states.copy())
        return states[:, 0].astype(np.float64)

    def learn(self, states):
        self.learned.append(states.copy())
        return 0.5


def corridor(copies=2):
    return VecMonitor(DummyVecEnv([Corridor] * copies))


class TestMoments:
    def test_batches_merge_to_the_moments_of_all(self):
        values = np.random.default_rng(0).normal(3, 2, (100, 4))
        moments = RunningMoments((4,))
        for part in np.split(values, [1, 7, 50]):
            moments.update(part)
        moments.update(values[:0])
        assert moments.count == 100
        np.testing.assert_allclose(moments.mean, values.mean(0))
        np.testing.assert_allclose(moments.variance, values.var(0))

    def test_they_can_be_kept(self):
        one, other = RunningMoments(()), RunningMoments(())
        one.update(np.arange(5.0))
        other.load_state_dict(one.state_dict())
        one.update(np.arange(3.0))
        other.update(np.arange(3.0))
        assert (one.mean, one.variance, one.count) == (other.mean, other.variance, other.count)

    def test_other_shapes_are_refused(self):
        with pytest.raises(ValueError, match=r"values must have shape .* given \(3, 2\)"):
            RunningMoments((4,)).update(np.zeros((3, 2)))


class TestScale:
    def test_calls_one_by_one_keep_the_sums(self):
        rewards = np.random.default_rng(0).random((6, 3))
        whole, parts = DiscountedScale(3), DiscountedScale(3)
        whole.normalise(rewards)
        for row in rewards:
            parts.normalise(row[None])
        np.testing.assert_allclose(whole.sums, parts.sums)
        assert whole.deviation == pytest.approx(parts.deviation)

    def test_no_mean_is_subtracted(self):
        assert (DiscountedScale(2).normalise(np.full((4, 2), 5.0)) > 0).all()

    def test_nothing_stays_nothing(self):
        assert (DiscountedScale(2).normalise(np.zeros((3, 2))) == 0).all()

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match=r"discount must lie in \[0, 1\), given 1"):
            DiscountedScale(2, discount=1)
        with pytest.raises(ValueError, match=r"rewards must be \(T, 2\), given \(3, 3\)"):
            DiscountedScale(2).normalise(np.zeros((3, 3)))


class TestAdvantages:
    def test_without_trace_they_are_the_errors(self):
        rewards, values, dones = torch.rand(5), torch.rand(6), torch.tensor([0.0, 1, 0, 0, 0])
        found = generalised_advantages(rewards, values, dones, discount=0.9, trace=0.0)
        torch.testing.assert_close(found, rewards + 0.9 * (1 - dones) * values[1:] - values[:-1])

    def test_with_full_trace_they_are_returns_minus_values(self):
        rewards, values = torch.rand(4), torch.rand(5)
        found = generalised_advantages(rewards, values, torch.zeros(4), discount=0.9, trace=1.0)
        returned = sum(0.9**t * rewards[t] for t in range(4)) + 0.9**4 * values[4]
        torch.testing.assert_close(found[0], returned - values[0])

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match=r"T rewards, T dones and T \+ 1 values, given shapes \(3,\), \(3,\)"):
            generalised_advantages(torch.rand(3), torch.rand(3), torch.zeros(3))
        with pytest.raises(ValueError, match=r"trace must lie in \[0, 1\], given 2"):
            generalised_advantages(torch.rand(3), torch.rand(4), torch.zeros(3), trace=2)


class TestNovelty:
    def test_the_gradient_honours_what_comes_from_above_and_spares_the_target(self):
        predicted = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
        target = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
        (3 * novelty_loss(predicted, target)).backward()
        torch.testing.assert_close(predicted.grad, 3 * 2 * (predicted - target).detach() / 5)
        assert target.grad is None

    def test_what_was_seen_is_no_longer_new_and_the_target_never_moves(self):
        novelty = RandomNetworkDistillation(4, seed=1)
        before = [p.clone() for p in novelty.target.parameters()]
        draw = np.random.default_rng(0)
        novelty.prepare(draw.normal(size=(500, 4)))
        here, there = np.full((1, 4), 0.5), np.full((1, 4), -2.0)
        old, far = novelty.bonus(here)[0], novelty.bonus(there)[0]
        known = novelty.moments.state_dict()
        for _ in range(300):
            novelty.learn(np.repeat(here, 32, 0) + 0.01 * draw.normal(size=(32, 4)))
            novelty.moments.load_state_dict(known)  # the scale stays that of the walk
            if novelty.bonus(here)[0] < 0.05 * old:
                break
        assert novelty.bonus(here)[0] < 0.05 * old
        assert novelty.bonus(there)[0] > 0.5 * far
        assert all(a.equal(b) for a, b in zip(before, novelty.target.parameters(), strict=True))
        novelty.train()
        assert not novelty.target.training

    def test_the_global_random_state_is_left_alone(self):
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        RandomNetworkDistillation(4, seed=5)
        assert torch.rand(3).equal(expected)

    def test_columns_limit_what_counts(self):
        novelty = RandomNetworkDistillation(4, columns=[0, 1])
        states = np.random.default_rng(0).normal(size=(6, 4))
        novelty.prepare(states)
        other = states.copy()
        other[:, 2:] = 9
        np.testing.assert_array_equal(novelty.bonus(states), novelty.bonus(other))

    def test_bad_input_is_refused(self):
        novelty = RandomNetworkDistillation(4)
        with pytest.raises(ValueError, match="a state holds NaN or infinite values"):
            novelty.bonus(np.full((2, 4), np.nan))
        with pytest.raises(ValueError, match="states must have 4 numbers, given 3"):
            novelty.learn(np.zeros((2, 3)))
        with pytest.raises(ValueError, match=r"keep is the share .* in \(0, 1\], given 0"):
            RandomNetworkDistillation(4, keep=0)
        with pytest.raises(ValueError, match=r"columns must be numbers in \[0, 4\), given \[7\]"):
            RandomNetworkDistillation(4, columns=[7])
        with pytest.raises(ValueError, match="as deep as its target or deeper, given 1 hidden layers for 2"):
            RandomNetworkDistillation(4, predictor_hidden=[8])
        with pytest.raises(ValueError, match=r"an input and an output width, given \[3\]"):
            mlp([3])


class TestWrapper:
    def test_the_state_that_was_reached_is_paid(self):
        novelty = Recorded()
        venv = IntrinsicReward(corridor(1), novelty, strength=2.0)
        venv.reset()
        for _ in range(6):
            _, rewards, _, infos = venv.step(np.zeros((1, 1)))
        assert [float(states[0, 0]) for states in novelty.paid] == [1, 2, 3, 4, 5, 1]  # 5, not the 0 of the next start
        assert infos[0]["extrinsic_reward"] == 1.0
        assert rewards[0] == pytest.approx(1 + 2 * infos[0]["intrinsic_reward"])

    def test_the_episode_counts_what_the_environment_pays(self):
        venv = IntrinsicReward(corridor(1), Recorded(), strength=3.0)
        venv.reset()
        for _ in range(5):
            _, _, dones, infos = venv.step(np.zeros((1, 1)))
        assert dones[0]
        assert infos[0]["episode"]["r"] == 5.0

    def test_it_learns_after_the_rollout_from_all_of_it(self):
        novelty = Recorded()
        venv = IntrinsicReward(corridor(), novelty)
        model = PPO("MlpPolicy", venv, n_steps=8, batch_size=8, n_epochs=1, device="cpu")
        model.learn(32, callback=LearnNovelty(venv))
        assert [len(states) for states in novelty.learned] == [16, 16]
        assert venv.learned == 2
        np.testing.assert_array_equal(novelty.learned[0], np.concatenate(novelty.paid[:8]))

    def test_a_strength_of_nothing_changes_nothing(self):
        def trained(wrapped):
            venv = make_vec_env("Pendulum-v1", n_envs=2, seed=3)
            callback = None
            if wrapped:
                venv = IntrinsicReward(venv, RandomNetworkDistillation(3, seed=9), strength=0.0)
                venv.prepare(40, seed=1)
                callback = LearnNovelty(venv)
            model = PPO("MlpPolicy", venv, n_steps=16, batch_size=16, n_epochs=2, seed=3, device="cpu")
            return model.learn(96, callback=callback).policy.state_dict()

        plain, curious = trained(False), trained(True)
        assert all(value.equal(curious[name]) for name, value in plain.items())

    def test_it_serves_algorithms_off_policy_too(self):
        venv = IntrinsicReward(make_vec_env("Pendulum-v1", n_envs=1), RandomNetworkDistillation(3, seed=0))
        model = SAC("MlpPolicy", venv, learning_starts=8, train_freq=8, batch_size=8, buffer_size=100, device="cpu")
        model.learn(24, callback=LearnNovelty(venv))
        assert venv.learned == 3

    def test_strength_may_follow_the_steps(self):
        venv = IntrinsicReward(corridor(1), Recorded(), strength=lambda steps: 0.0 if steps > 1 else 1.0)
        venv.reset()
        _, first, _, infos = venv.step(np.zeros((1, 1)))
        _, second, _, _ = venv.step(np.zeros((1, 1)))
        assert first[0] == pytest.approx(1 + infos[0]["intrinsic_reward"])
        assert second[0] == 1.0

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match="strength must be a number of 0 or more, given -1"):
            IntrinsicReward(corridor(), Recorded(), strength=-1)
        with pytest.raises(ValueError, match="steps must be 1 or more, given 0"):
            IntrinsicReward(corridor(), Recorded()).prepare(0)

        class Pictures(Corridor):
            observation_space = gymnasium.spaces.Box(0, 255, (3, 8, 8), np.uint8)

        with pytest.raises(ValueError, match="observations that are vectors, given Box"):
            IntrinsicReward(DummyVecEnv([Pictures]), Recorded())


class TestTwoHeads:
    def test_without_novelty_it_is_the_plain_algorithm(self):
        def trained(two_heads):
            venv = IntrinsicReward(make_vec_env("Pendulum-v1", n_envs=2, seed=3), Recorded(), strength=0.0)
            model = PPO("MlpPolicy", venv, n_steps=16, batch_size=16, n_epochs=2, seed=3, device="cpu")
            weights = {"extrinsic_weight": 1.0, "intrinsic_weight": 0.0}
            callback = TwoHeads(venv, **weights) if two_heads else LearnNovelty(venv)
            return model.learn(96, callback=callback).policy.state_dict()

        plain, other = trained(False), trained(True)
        assert all(value.equal(other[name]) for name, value in plain.items())

    def test_advantages_join_and_novelty_goes_on_over_the_end_of_an_episode(self):
        venv = IntrinsicReward(corridor(1), Recorded(), strength=0.0)
        model = PPO("MlpPolicy", venv, n_steps=8, batch_size=8, n_epochs=1, device="cpu")
        seen = {}

        class Watched(TwoHeads):
            def _on_rollout_end(self):
                seen["before"] = self.locals["rollout_buffer"].advantages.copy()
                seen["rewards"] = torch.tensor(self._paid)
                states = torch.as_tensor(self.locals["rollout_buffer"].observations).float()
                after = torch.as_tensor(self.locals["new_obs"]).float()[None]
                with torch.no_grad():
                    seen["values"] = self.value(torch.cat([states, after]))
                super()._on_rollout_end()
                seen["after"] = self.locals["rollout_buffer"].advantages.copy()

        model.learn(8, callback=Watched(venv, discount=0.9, trace=0.8))
        rewards, values = seen["rewards"], seen["values"]
        error = rewards + 0.9 * values[1:] - values[:-1]
        by_hand = sum((0.9 * 0.8) ** t * error[t] for t in range(8))  # also over step 5, where the episode ended
        gained = torch.from_numpy(seen["after"] - 2 * seen["before"])
        torch.testing.assert_close(gained[0], by_hand, rtol=1e-4, atol=1e-5)

    def test_the_second_critic_learns_what_novelty_pays(self):
        venv = IntrinsicReward(corridor(2), Recorded(), strength=0.0)
        callback = TwoHeads(venv, lr=1e-2)
        model = PPO("MlpPolicy", venv, n_steps=50, batch_size=50, n_epochs=1, device="cpu")
        model.learn(600, callback=callback)
        places = torch.arange(5.0).unsqueeze(1)
        assert (callback.value(places).diff() != 0).any()
        assert callback.value(places).mean().item() > 1

    def test_a_bonus_that_is_paid_already_is_refused(self):
        with pytest.raises(ValueError, match=r"must have strength=0, given 0\.5"):
            TwoHeads(IntrinsicReward(corridor(), Recorded(), strength=0.5))
        with pytest.raises(ValueError, match="weights must be 0 or more, given -1 and 1"):
            TwoHeads(IntrinsicReward(corridor(), Recorded(), strength=0.0), extrinsic_weight=-1, intrinsic_weight=1)
