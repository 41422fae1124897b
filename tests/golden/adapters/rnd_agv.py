"""Adapters of the vectors of random network distillation and of the vehicle."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from stillroom.explore import DiscountedScale, RandomNetworkDistillation, RunningMoments, generalised_advantages
from stillroom.explore.wrapper import combined_reward as combine
from stillroom.losses import novelty_loss
from stillroom.systems.exploration.rnd_agv import Vehicle
from stillroom.systems.exploration.rnd_agv import cast_rays as cast
from stillroom.systems.exploration.rnd_agv import step_vehicle as step


def network(weights, biases):
    layers = []
    for weight, bias in zip(weights, biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0]).double()
        linear.load_state_dict({"weight": weight.double(), "bias": bias.double()})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def rnd_error(inputs, params):
    states = inputs["states"].double()
    target = network(inputs["target_weights"], inputs["target_biases"])
    predictor = network(inputs["predictor_weights"], inputs["predictor_biases"])
    pair = RandomNetworkDistillation(states.shape[1], target=target, predictor=predictor)
    return {"target": target(states), "predictor": predictor(states), "r_i": pair.error(states)}


def rnd_loss(inputs, params):
    return {"loss": novelty_loss(inputs["predictor"].double(), inputs["target"].double())}


def running_moments(inputs, params):
    batches = [batch.double().numpy() for batch in inputs["batches"]]
    moments = RunningMoments(batches[0].shape[1:])
    for batch in batches:
        moments.update(batch)
    query = inputs["query"].double().numpy()
    return {
        "count": moments.count,
        "mean": moments.mean,
        "var": moments.variance,
        "normalised": moments.normalise(query, clip=params["clip"], floor=params["eps"]),
    }


def intrinsic_normaliser(inputs, params):
    rewards = inputs["r_i"].double().numpy()
    scale = DiscountedScale(rewards.shape[1], discount=params["gamma_int"])
    sums, discounted = np.zeros(rewards.shape[1]), []
    one_by_one = DiscountedScale(rewards.shape[1], discount=params["gamma_int"])
    for row in rewards:  # the sums are those that the scale keeps from call to call
        one_by_one.normalise(row[None])
        sums = one_by_one.sums
        discounted.append(sums)
    normalised = scale.normalise(rewards)
    return {"returns": np.stack(discounted), "std": scale.deviation, "normalised": normalised}


def combined_reward(inputs, params):
    extrinsic, intrinsic = inputs["r_e"].double().numpy(), inputs["r_i"].double().numpy()
    return {"r": combine(extrinsic, intrinsic, strength=params["strength"])}


def gae(inputs, params):
    rewards, values, dones = (inputs[name].double() for name in ("rewards", "values", "dones"))
    options = {"discount": params["gamma"], "trace": params["lambda"]}
    return {
        "episodic": generalised_advantages(rewards, values, dones, **options),
        "non_episodic": generalised_advantages(rewards, values, dones, episodic=False, **options),
    }


def vehicle_step(inputs, params):
    vehicle = Vehicle(dt=params["dt"], speed=params["vmax"], turn=params["wmax"], acceleration=params["amax"])
    pose, speed, action = (inputs[name].double().numpy() for name in ("pose_xytheta", "speed", "action"))
    moved, faster = step(pose, speed, action, vehicle=vehicle)
    return {"pose_xytheta": moved, "speed": faster}


def ray_cast(inputs, params):
    origin, boxes = inputs["origin"].double().numpy()[None], inputs["boxes"].double().numpy()
    heading = torch.as_tensor(inputs["heading"]).double().reshape(1).numpy()
    return {"ranges": cast(origin, heading, boxes, rays=params["n_rays"], max_range=params["max_range"])[0]}
