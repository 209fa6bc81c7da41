"Small real methods that tests drive"

import math
from dataclasses import dataclass

import torch
from torch import nn

from deffi_lab.core.knobs import knob
from deffi_lab.core.step import Step, make_generator


@dataclass
class Knobs:
    lr: float = knob(1e-2, 1e-5, 1.0, scale="log")
    noise: float = knob(0.1, 0.0, 1.0)


class Regress:
    "A net learns a noisy function; a round is three steps; every draw comes from its own generator"

    def __init__(
        self,
        rounds: int = 20,
        seed: int = 0,
        fail_at: int | None = None,
        error: BaseException | None = None,
    ):
        self.rounds, self.seed, self.fail_at, self.error, self.knobs = (
            rounds,
            seed,
            fail_at,
            error,
            Knobs(),
        )
        self.reset()

    def reset(self):
        self.generator = make_generator(self.seed)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        with torch.no_grad():
            for p in self.net.parameters():
                p.copy_(torch.randn(p.shape, generator=self.generator) * 0.3)
        self.opt = torch.optim.Adam(self.net.parameters(), lr=self.knobs.lr)
        self.round, self.index, self.at_boundary = 0, 0, True

    def state_dict(self):
        return {
            "net": self.net.state_dict(),
            "opt": self.opt.state_dict(),
            "generator": self.generator.get_state(),
            "round": self.round,
            "index": self.index,
        }

    def load_state_dict(self, s):
        self.net.load_state_dict(s["net"])
        self.opt.load_state_dict(s["opt"])
        self.generator.set_state(s["generator"])
        self.round, self.index, self.at_boundary = s["round"], s["index"], True

    def __iter__(self):
        while self.round < self.rounds:
            for part in range(3):
                x = torch.randn(32, 4, generator=self.generator)
                y = x.sum(1, keepdim=True).sin() + self.knobs.noise * torch.randn(
                    32, 1, generator=self.generator
                )
                loss = (self.net(x) - y).square().mean()
                for g in self.opt.param_groups:
                    g["lr"] = self.knobs.lr
                self.opt.zero_grad()
                loss.backward()
                self.opt.step()
                self.index += 1
                if self.index == self.fail_at:
                    if self.error is None:
                        loss = loss * float("nan")
                    else:
                        raise self.error
                self.at_boundary = part == 2
                if self.at_boundary:
                    self.round += 1
                yield Step(self.index, "learn", {"loss": loss.item()})


class Trainings(list):
    """The arguments of each `Fit` that a module makes, as dictionaries; nothing is trained"""

    def __init__(self, monkeypatch, module):
        seen = self

        class Untrained:
            def __init__(self, net, loss, batches, **how):
                seen.append({"net": net, "loss": loss, "draw": batches} | how)

            def __iter__(self):
                return iter(())

        monkeypatch.setattr(module, "Fit", Untrained)


def rates(schedule, steps: int) -> list[float]:
    "The learning rate of each step, as a share of the top"
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    if schedule is None:
        return [1.0] * steps
    plan, out = schedule(optimiser), []
    for _ in range(steps):
        out.append(float(optimiser.param_groups[0]["lr"]))
        optimiser.step()
        plan.step()
    return out


def half_cosine(steps: int) -> list[float]:
    "From 1 down towards 0, by the formula"
    return [0.5 * (1 + math.cos(math.pi * t / steps)) for t in range(steps)]
