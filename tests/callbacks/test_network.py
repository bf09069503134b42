"""A LightningModule is read by its forward, under either root, in a run, and as its shadow."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.callbacks.support import loader
from tests.callbacks.test_roots import EACH_ROOT
from torch_thermo.callbacks.quiet import quiet_shadow
from torch_thermo.network import Network


def module_of(root: str) -> Any:
    base: Any = importlib.import_module(root).LightningModule

    class Net(base):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
            self.head = nn.Linear(5, 3)
            self.criterion = nn.CrossEntropyLoss()
            self.norms: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.net(x.to(self.device)))
            self.norms.append(x.norm())
            return self.head(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.criterion(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Net()


@pytest.mark.parametrize("root", EACH_ROOT)
def test_read_by_itself_and_in_a_run(root: str, tmp_path: Any) -> None:
    package: Any = importlib.import_module(root)
    module = module_of(root)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    outer = Network.from_module(module, x)
    assert [stage.name for stage in outer.stages] == ["net.0", "head"]
    assert module.norms == []
    seen: list[int] = []

    class Reader(package.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            kept, state = len(pl_module.norms), dict(vars(pl_module))
            shadow, _ = quiet_shadow(trainer, pl_module)
            networks = [Network.from_module(m, x) for m in (pl_module, shadow)]
            assert pl_module.training
            assert vars(pl_module) == state
            assert len(pl_module.norms) == kept
            flags = [(part, part.training) for part in pl_module.modules()]
            for part, _flag in flags:
                part.training = False
            with torch.no_grad():
                expected = pl_module(x)
            for part, flag in flags:
                part.training = flag
            for network in (outer, *networks):
                torch.testing.assert_close(network(x), expected)
                assert {id(p) for p in network.parameters()} == {
                    id(p) for p in pl_module.parameters()
                }
            seen.append(trainer.global_step)

    trainer = package.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[Reader()],
    )
    trainer.fit(module, loader())
    assert seen == [1, 2, 3]
