"""Progress lines on the terminal; a module of its own, because the training processes import it by name."""

import time

from coe.zoo.digits.train import RECIPES


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def epoch_done(name: str, epoch: int, loss: float) -> None:
    epochs = RECIPES[name].epochs
    if epoch % (epochs // 4) == 0:
        say(f"{name}: epoch {epoch} of {epochs}, loss {loss:.3f}")
