"""How the probe is read: through the run's own hooks, on copies, without a trace."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from tests.callbacks.support import (
    Classifier,
    Numbered,
    drawn,
    finite,
    loader,
    make_trainer,
    notices,
    numbers,
)
from torch_thermo.callbacks import At, Every, PlasticityOrderParameter
from torch_thermo.risk import batch_size

START = At(steps=[0], end=False)


class Locked(Numbered):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.transform = lambda x: x + 0.0

    def __getitem__(self, index: int) -> Any:
        with self.lock:
            x, y = super().__getitem__(index)
            return self.transform(x), y


class Unreadable(Numbered):
    def __reduce_ex__(self, protocol):
        return (Unreadable, (self.examples, "too", "many"))


@pytest.mark.parametrize(("kind", "shared"), [(Locked, False), (Unreadable, True)])
def test_data_sets_that_cannot_be_copied(tmp_path, kind, shared):
    data = kind()
    with notices() as texts:
        probe = drawn(tmp_path, 20, loader(data))
    assert len(probe.indices) == 20
    assert len(texts) == 1, texts
    assert kind.__name__ in texts[0]
    assert ("lock" in texts[0]) != shared
    assert len(data.read) == 48 + 20 * shared


def test_large_data_are_read_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr("torch_thermo.callbacks.loading._BULK", 100)

    class Large(Numbered):
        def __init__(self) -> None:
            super().__init__()
            self.data = [torch.arange(48.0)]
            self.small = torch.zeros(2)

        def __getitem__(self, index):
            places.append((self.data[0].data_ptr(), self.small.data_ptr()))
            return super().__getitem__(index)

    places: list[Any] = []
    data = Large()
    drawn(tmp_path, 1, loader(data))
    assert len(places) == 49
    ours = [place for place in places if place[1] != data.small.data_ptr()]
    assert len(ours) == 1
    assert ours[0][0] == data.data[0].data_ptr()


class OwnCollate(Numbered):
    def __init__(self) -> None:
        super().__init__()
        self.collated = 0

    def collate(self, items):
        self.collated += 1
        x, y = zip(*items, strict=True)
        return {"input": torch.stack(x), "label": torch.tensor(y), "name": [str(i) for i in y]}


class Mapped(Classifier):
    """Batches are dictionaries; the module collates, too."""

    def __init__(self) -> None:
        super().__init__()
        self.collated = 0

    def collate(self, items):
        self.collated += 1
        return OwnCollate.collate(self, items)  # type: ignore[arg-type]

    def training_step(self, batch, batch_idx):
        assert len(batch["name"]) == len(batch["label"])
        return self.criterion(self(batch["input"]), batch["label"])


def test_collating_is_the_loaders_own_and_leaves_no_trace(tmp_path):
    data = OwnCollate()
    probe = drawn(tmp_path, 20, loader(data, collate_fn=data.collate), Mapped())
    assert data.collated == 6
    assert [sorted(batch) for batch in probe.batches] == [["input", "label", "name"]] * 7
    module = Mapped()
    probe = drawn(tmp_path, 20, loader(Numbered(), collate_fn=module.collate), module)
    assert module.collated == 2 * 6  # it counts in two places
    assert sum(batch_size(batch) for batch in probe.batches) == 20
    # cut: tensors and names alike
    cut = probe.part(5)
    assert [len(batch["name"]) for batch in cut] == [3, 2]
    assert [len(batch["label"]) for batch in cut] == [3, 2]


class Transfers(Classifier):
    """Says what Lightning does to a batch, in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.order.append("before")
        return [batch[0] + 100, batch[1]]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.order.append("after")
        return [batch[0] * 2, batch[1]]


class Data(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.train = Numbered()
        self.transferred: list[int] = []

    def train_dataloader(self):
        return loader(self.train)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.transferred.append(len(batch[0]))
        return [batch[0] - 1, batch[1]]


def test_transfer_hooks_are_the_modules_or_the_datamodules(tmp_path):
    module = Transfers()
    probe = drawn(tmp_path, 20, loader(Numbered()), module)
    assert numbers(probe) == [2 * (i + 100) for i in probe.indices]
    assert module.order == ["before", "after"] * 6
    data = Data()
    module = Transfers()
    with pytest.warns(UserWarning, match="on_after_batch_transfer"):
        probe = drawn(tmp_path, 20, data, module)
    assert numbers(probe) == [i + 100 - 1 for i in probe.indices]
    assert data.transferred == [8] * 6
    assert module.order == ["before"] * 6
    assert len(data.train.read) == 48


def test_inputs_are_converted_as_the_precision_does(tmp_path):
    callback = PlasticityOrderParameter(START, probe=20)
    make_trainer(tmp_path, callback, precision="64-true").fit(Classifier(), loader(Numbered()))
    assert callback.session.probe.batches[0][0].dtype == torch.float64
    assert finite(callback.stored(), "order_parameter") == [0]


def test_module_that_holds_its_data_is_not_copied_with_them(tmp_path):
    class Counted(Numbered):
        copies = 0

        def __getstate__(self):
            Counted.copies += 1
            return self.__dict__

    class Holder(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.data = Counted()

        def train_dataloader(self):
            return loader(self.data)

    module = Holder()
    callback = PlasticityOrderParameter(Every(steps=1), probe=20)
    make_trainer(tmp_path, callback).fit(module)
    assert finite(callback.stored(), "order_parameter") == list(range(7))
    assert 0 < Counted.copies <= 2  # one copy, for the probe, asks for it twice at most
