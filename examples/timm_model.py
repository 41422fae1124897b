"""timm models as teacher and student, features matched by themselves. About half a minute on two cores."""

import timm
import torch
from torch import nn

from stillroom import Optim, Training, fit
from stillroom.baselines import Alone
from stillroom.data import digits
from stillroom.systems.classification.logit_kd import AT


def network(name: str) -> nn.Module:
    model = timm.create_model(name, pretrained=False, num_classes=10, in_chans=1)
    return nn.Sequential(nn.Upsample(scale_factor=4), model)  # 8x8 digits become 32x32


def main(teacher_steps: int = 60, steps: int = 40) -> dict[str, float]:
    torch.manual_seed(0)
    data = digits()
    teacher = network("resnet10t")
    quick = Training(steps=teacher_steps, batch_size=64, optimizer=Optim(lr=2e-3))
    fit(Alone(teacher), data, quick, title="teacher")

    probe = data.train.batch([0, 1])  # one probe forward pairs the stages of the two networks
    method = AT(network("mobilenetv3_small_050"), teacher, probe=probe)
    result = fit(method, data, quick.change(steps=steps), title="student")
    return {"first loss": sum(result.terms[0][1].values()), "last loss": sum(result.terms[-1][1].values())}


if __name__ == "__main__":
    print(main())
