"""The losses once more, as loops over plain numbers in float64 that read like the papers. Nothing here imports ours."""

from __future__ import annotations

import math

import numpy as np


def softmax(row, temperature=1.0):
    exps = [math.exp(value / temperature - max(row) / temperature) for value in row]
    return [value / sum(exps) for value in exps]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def forward_kl(student, teacher, temperature):
    return [kl(softmax(t, temperature), softmax(s, temperature)) for s, t in zip(student, teacher, strict=True)]


def reverse_kl(student, teacher, temperature):
    return forward_kl(teacher, student, temperature)


def jensen_shannon(student, teacher, teacher_share, temperature):
    values = []
    for s, t in zip(student, teacher, strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        middle = [teacher_share * a + (1 - teacher_share) * b for a, b in zip(p, q, strict=True)]
        values.append(teacher_share * kl(p, middle) + (1 - teacher_share) * kl(q, middle))
    return values


def kd(student, teacher, temperature):
    return [temperature**2 * value for value in forward_kl(student, teacher, temperature)]


def bernoulli_kd(student, teacher, temperature):
    def one(s, t):
        p, q = 1 / (1 + math.exp(-t / temperature)), 1 / (1 + math.exp(-s / temperature))
        return temperature**2 * kl([p, 1 - p], [q, 1 - q])

    return [[one(s, t) for s, t in zip(*rows, strict=True)] for rows in zip(student, teacher, strict=True)]


def tckd(student, teacher, labels, temperature):
    values = []
    for s, t, y in zip(student, teacher, labels, strict=True):
        p, q = softmax(t, temperature)[y], softmax(s, temperature)[y]
        values.append(temperature**2 * kl([p, 1 - p], [q, 1 - q]))
    return values


def nckd(student, teacher, labels, temperature):
    values = []
    for s, t, y in zip(student, teacher, labels, strict=True):
        others = [c for c in range(len(s)) if c != y]
        p, q = softmax([t[c] for c in others], temperature), softmax([s[c] for c in others], temperature)
        values.append(temperature**2 * kl(p, q))
    return values


def standardized(logits):
    rows = []
    for row in logits:
        mean = sum(row) / len(row)
        spread = math.sqrt(sum((value - mean) ** 2 for value in row) / (len(row) - 1))
        rows.append([(value - mean) / (1e-7 + spread) for value in row])
    return rows


def pearson(a, b):
    a, b = [x - sum(a) / len(a) for x in a], [x - sum(b) / len(b) for x in b]
    length = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (length + 1e-8)


def dist(student, teacher, beta, gamma, tau):
    p, q = [softmax(row, tau) for row in student], [softmax(row, tau) for row in teacher]
    samples, classes = len(p), len(p[0])
    inter = 1 - sum(pearson(p[n], q[n]) for n in range(samples)) / samples
    intra = 1 - sum(pearson([r[c] for r in p], [r[c] for r in q]) for c in range(classes)) / classes
    return tau**2 * (beta * inter + gamma * intra)


def permutation(teacher, labels):
    orders = []
    for row, label in zip(teacher, labels, strict=True):
        others = [c for c in range(len(row)) if c != label]
        orders.append([label, *sorted(others, key=lambda c: (-row[c], c))])
    return orders


def plackett_luce(student, orders, weights):
    values = []
    for row, order, weight in zip(student, orders, weights, strict=True):
        total = 0.0
        for rank, chosen in enumerate(order):
            remaining = [row[c] for c in order[rank:]]
            top = max(remaining)
            total += weight[rank] * (top + math.log(sum(math.exp(v - top) for v in remaining)) - row[chosen])
        values.append(total)
    return values


def pld(student, teacher, labels, tau):
    orders = permutation(teacher, labels)
    weights = [[softmax(t, tau)[c] for c in order] for t, order in zip(teacher, orders, strict=True)]
    return plackett_luce(student, orders, weights)


def pld_gradient(student, teacher, labels, tau):
    """The closed form, for the loss of each sample: -a_k(i) + sum over k <= k(i) of a_k * the chance of i at step k."""
    rows = []
    for s, t, order in zip(student, teacher, permutation(teacher, labels), strict=True):
        weight = [softmax(t, tau)[c] for c in order]
        row = [0.0] * len(s)
        for rank, chosen in enumerate(order):
            row[chosen] -= weight[rank]
            for step in range(rank + 1):
                row[chosen] += weight[step] * softmax([s[c] for c in order[step:]])[rank - step]
        rows.append(row)
    return rows


def attention(student, teacher, power):
    """`student` and `teacher` are arrays (N, C, H, W) of one size of map."""

    def of(feature):
        flat = (feature**power).mean(axis=0).reshape(-1)
        return flat / math.sqrt(sum(value**2 for value in flat))

    return [float(((of(s) - of(t)) ** 2).mean()) for s, t in zip(student, teacher, strict=True)]


def shrink(feature, size):
    """Average an array (C, H, W) to (C, size, size), where size divides H and W."""
    channels, height, width = feature.shape
    return feature.reshape(channels, size, height // size, size, width // size).mean(axis=(2, 4))


def review_context(student, teacher):
    values = []
    for s, t in zip(student, teacher, strict=True):
        total, weight, weights = ((s - t) ** 2).mean(), 1.0, 1.0
        for size in (4, 2, 1):
            if size < s.shape[1]:
                weight /= 2
                total += weight * ((shrink(s, size) - shrink(t, size)) ** 2).mean()
                weights += weight
        values.append(float(total / weights))
    return values


def huber(difference):
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def rkd_distance(student, teacher, *, squared=False):
    def table(points):
        count = len(points)
        raw = [[math.dist(a, b) ** (2 if squared else 1) for b in points] for a in points]
        mean = sum(map(sum, raw)) / (count * (count - 1))
        return [[value / mean for value in row] for row in raw]

    ours, theirs = table(student), table(teacher)
    return [
        sum(huber(a - b) for a, b in zip(own, other, strict=True)) / len(ours)
        for own, other in zip(ours, theirs, strict=True)
    ]


def rkd_angle(student, teacher):
    def cosine(points, i, j, k):
        first = [b - a for a, b in zip(points[i], points[j], strict=True)]
        second = [b - a for a, b in zip(points[i], points[k], strict=True)]
        length = math.hypot(*first) * math.hypot(*second)
        return sum(a * b for a, b in zip(first, second, strict=True)) / length if length else 0.0

    count = range(len(student))
    pairs = [(j, k) for j in count for k in count]
    return [
        sum(huber(cosine(student, i, j, k) - cosine(teacher, i, j, k)) for j, k in pairs) / len(pairs) for i in count
    ]


def crd(positive, negative, dataset_size):
    """Scores h, not their logarithms."""
    values = []
    for h, others in zip(positive, negative, strict=True):
        noise = len(others) / dataset_size
        values.append(-math.log(h / (h + noise)) - sum(math.log(noise / (k + noise)) for k in others))
    return values


def numeric_gradient(function, point, step=1e-6):
    """Central differences of a function of an array."""
    gradient = np.zeros_like(point)
    for place in np.ndindex(point.shape):
        up, down = point.copy(), point.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient
