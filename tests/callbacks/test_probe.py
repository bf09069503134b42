"""The probe: which examples a run is measured on, drawn without a trace."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from tests.callbacks.support import (
    Classifier,
    Numbered,
    blobs,
    drawn,
    finite,
    generators,
    loader,
    make_trainer,
    notices,
    numbers,
)
from torch_thermo.callbacks import At, Every, PlasticityOrderParameter, Thermometer, WeightSymmetry
from torch_thermo.risk import batch_size

START = At(steps=[0], end=False)


class Passing(IterableDataset):
    def __init__(self, examples: int = 48) -> None:
        self.examples = examples

    def __iter__(self) -> Any:
        return ((torch.full((6,), float(i)), i % 3) for i in range(self.examples))


class Batches:
    """Batches without a loader."""

    def __iter__(self) -> Any:
        return ((torch.full((4, 6), float(i)), torch.zeros(4, dtype=torch.long)) for i in range(3))


def test_same_seed_same_examples(tmp_path):
    first = drawn(tmp_path, 20, loader(Numbered()))
    assert numbers(first) == first.indices
    assert len(set(first.indices)) == 20
    assert first.population == 48
    assert drawn(tmp_path, 20, loader(Numbered(), batch_size=5)).indices == first.indices
    assert drawn(tmp_path, 20, loader(Numbered()), seed=1).indices != first.indices
    # the first of them are those of a larger probe
    assert drawn(tmp_path, 30, loader(Numbered())).indices[:20] == first.indices


@pytest.mark.parametrize(("examples", "expected"), [(600, 512), (40, 40), (1, 1)])
def test_512_or_all(tmp_path, examples, expected):
    probe = drawn(tmp_path, "train", loader(Numbered(examples), batch_size=600))
    assert len(set(numbers(probe))) == expected
    assert len(probe.batches) == min(8, expected)


def test_drawing_reads_neither_generator_nor_data_set(tmp_path):
    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.states = [*getattr(self, "states", []), generators()]

    seen = []
    for probe in ([], [PlasticityOrderParameter(START, probe=20)]):
        pl.seed_everything(1, verbose=False)
        data, watch = Numbered(), Watch()
        trainer = make_trainer(tmp_path, *probe, watch)
        trainer.fit(Classifier(), loader(data))
        seen.append((watch.states, data.read))
    assert seen[0] == seen[1]
    assert len(seen[1][1]) == 48


def test_sampler_of_a_subset_is_respected(tmp_path):
    allowed = list(range(10, 30))
    train = loader(Numbered(), shuffle=False, sampler=SubsetRandomSampler(allowed))
    probe = drawn(tmp_path, 512, train)
    assert sorted(numbers(probe)) == allowed
    assert probe.population == 20


def test_a_weighted_drawing_has_all_examples_that_it_may_draw(tmp_path):
    sampler = WeightedRandomSampler([0.1] * 20 + [3.0] * 4 + [0.0] * 24, 48)
    with notices() as texts:
        probe = drawn(tmp_path, 512, loader(Numbered(), shuffle=False, sampler=sampler))
    assert sorted(numbers(probe)) == list(range(24))
    assert probe.population == 24
    assert not texts


class Halves(Sampler):
    def __iter__(self) -> Any:
        return iter(range(24))

    def __len__(self) -> int:
        return 24


class Whole(Numbered):
    """Returns batches."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x[None], torch.tensor([y])


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (
            lambda: loader(Numbered(), shuffle=False, sampler=Halves()),
            "it is not known which examples a Halves draws",
        ),
        (lambda: DataLoader(Passing(), 8), "the data set Passing has no indices"),
        (
            lambda: DataLoader(Whole(), batch_size=None),
            "the data set Whole returns whole batches (batch_size=None)",
        ),
        (lambda: [loader(Numbered())], "the data come from a list, not from one DataLoader"),
        (lambda: Batches(), "the data come from a Batches, not from one DataLoader"),
    ],
    ids=["sampler", "iterable", "batches", "loaders", "other"],
)
def test_why_the_examples_pass_by_is_told(tmp_path, train, reason):
    class Module(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[0] if len(batch) == 1 else batch, batch_idx)

    with notices() as texts:
        probe = drawn(tmp_path, 6, train(), Module())
    assert probe.population is None
    assert sum(batch_size(batch) for batch in probe.batches) >= 6
    assert f"{reason}, so the probe is the first 6 examples that pass" in texts[0]


@pytest.mark.parametrize(("batches", "expected"), [(2, 16), (0.5, 24), (1.0, 48)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_overfitting_batches_are_all_that_is_drawn_from(tmp_path, batches, expected, shuffle):
    callback = PlasticityOrderParameter(START)
    data = Numbered()
    with notices() as texts:
        trainer = make_trainer(tmp_path, callback, overfit_batches=batches, max_epochs=2)
        trainer.fit(Classifier(), loader(data, shuffle=shuffle))
    probe = callback.session.probe
    assert sorted(numbers(probe)) == sorted(set(data.read)) == list(range(expected))
    assert probe.population == expected
    assert not texts


def test_overfitting_batches_of_a_drawing_of_its_own(tmp_path):
    class Pairs(BatchSampler):
        def __iter__(self):
            return iter([[40, 41], [30, 31], [20, 21]])

    train = DataLoader(Numbered(), batch_sampler=Pairs(SequentialSampler(range(48)), 2, False))
    callback = PlasticityOrderParameter(Every(steps=1), probe=4)
    with notices() as texts:
        make_trainer(tmp_path, callback, overfit_batches=2).fit(Classifier(), train)
    assert numbers(callback.session.probe) == [40, 41, 30, 31]
    assert "the first batches of a Pairs, so the probe is the first 4" in texts[0]


def test_iterable_data_pass_by(tmp_path):
    callback = PlasticityOrderParameter(Every(steps=1), probe=20)
    with notices() as texts:
        trainer = make_trainer(tmp_path, callback)
        trainer.fit(Classifier(), DataLoader(Passing(), batch_size=8))
    assert numbers(callback.session.probe) == list(range(20))
    assert len(texts) == 1
    assert "the first 20 examples that pass" in texts[0]
    # complete when the third batch has come, before its update
    assert finite(callback.stored(), "order_parameter") == [3, 4, 5, 6]


def test_iterable_data_that_end_early(tmp_path):
    callback = PlasticityOrderParameter(Every(steps=1), probe=100)
    with notices():
        trainer = make_trainer(tmp_path, callback, max_epochs=2)
        trainer.fit(Classifier(), DataLoader(Passing(20), batch_size=8))
    assert numbers(callback.session.probe) == list(range(20))
    assert finite(callback.stored(), "order_parameter") == [3, 4, 5, 6]


def test_an_odd_batch_that_passes_is_no_reason_to_stop(tmp_path):
    class Words(IterableDataset):
        def __iter__(self):
            return iter(["a", "b", "c"])

    class Module(Classifier):
        def training_step(self, batch, batch_idx):
            return self.net[0].weight.sum()

    callback = Thermometer(probe=2)
    with notices() as texts:
        trainer = make_trainer(tmp_path, callback)
        trainer.fit(Module(), DataLoader(Words(), batch_size=2))
    assert trainer.global_step == 2
    assert any("cannot tell the number of examples" in text for text in texts)
    assert finite(callback.stored(), "weight_symmetry", "sign_balance") == [0, 1, 2]


def test_validation_examples(tmp_path):
    for start in (1, 2):  # with 2 the validation data are loaded after the first epoch
        callback = PlasticityOrderParameter(Every(steps=1), probe="val")
        trainer = make_trainer(
            tmp_path / str(start), callback, max_epochs=3, check_val_every_n_epoch=start
        )

        class Validated(Classifier):
            def validation_step(self, batch, batch_idx):
                pass

        with notices() as texts:
            trainer.fit(Validated(), loader(), DataLoader(Numbered(30), batch_size=10))
        assert sorted(numbers(callback.session.probe)) == list(range(30))
        steps = finite(callback.stored(), "order_parameter")
        if start == 1:
            assert steps == list(range(19))
            assert not texts
        else:
            assert steps == list(range(12, 19))
            assert len(texts) == 1
            assert "not loaded yet" in texts[0]


def test_validation_examples_without_validation(tmp_path):
    callback = Thermometer(probe="val")
    with notices() as texts:
        make_trainer(tmp_path, callback).fit(Classifier(), loader())
    assert any(
        'probe="val" needs one validation loader over an indexable data set, but there is none'
        in text
        for text in texts
    )
    assert finite(callback.stored(), "weight_symmetry", "sign_balance")


@pytest.mark.parametrize(
    "given",
    [
        (torch.arange(12.0)[:, None].expand(12, 6), torch.zeros(12, dtype=torch.long)),
        [(torch.full((1, 6), float(i)), torch.zeros(1, dtype=torch.long)) for i in range(12)],
        DataLoader(Numbered(12), batch_size=5),
    ],
    ids=["batch", "batches", "loader"],
)
def test_examples_of_the_user(tmp_path, given):
    probe = drawn(tmp_path, given, loader())
    assert numbers(probe) == list(range(12))
    assert probe.population is None


@pytest.mark.parametrize(
    ("probe", "error", "message"),
    [
        (0, ValueError, "probe must be at least 1 example, got 0"),
        (-3, ValueError, "got -3"),
        ([], ValueError, r"probe must hold at least 1 example, got \[\]"),
        ((), ValueError, "probe must hold at least 1 example"),
        ("test", ValueError, 'probe must be "train" or "val", got \'test\''),
        (True, TypeError, "probe must be a number"),
        (1.5, TypeError, "probe must be a number"),
        (None, TypeError, "probe must be a number"),
        ((b for b in ()), TypeError, "one-shot generator"),
    ],
)
def test_bad_probes(probe, error, message):
    for kind in (Thermometer, PlasticityOrderParameter):
        with pytest.raises(error, match=message):
            kind(probe=probe)


def test_examples_are_cut(tmp_path):
    callback = PlasticityOrderParameter(START, probe=20, examples=7)
    module = Classifier()
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    make_trainer(tmp_path, callback).fit(module, loader(Numbered()))
    module.load_state_dict(weights)
    indices = callback.session.probe.indices[:7]
    x = torch.tensor(indices, dtype=torch.float32)[:, None].expand(7, 6)
    expected = module.criterion(module(x), torch.tensor(indices) % 3)
    measured = callback.stored().series("order_parameter/risk").values[0]
    assert measured == pytest.approx(float(expected), rel=1e-5)


def test_probe_travels_in_the_checkpoint(tmp_path, monkeypatch):
    for limit, tensors in ((2**20, True), (1, False)):
        monkeypatch.setattr("torch_thermo.callbacks.probe.SMALL", limit)
        folder = tmp_path / str(limit)
        callback = Thermometer(probe=20)
        save = ModelCheckpoint(folder, filename="end")
        trainer = make_trainer(folder, callback, save, enable_checkpointing=True)
        trainer.fit(Classifier(), loader(Numbered()))
        content = torch.load(save.best_model_path, weights_only=True)
        state = content["callbacks"][callback.state_key]["probe"]
        assert ("batches" in state) == tensors
        again = Thermometer(probe=20, seed=0)
        trainer = make_trainer(folder / "on", again, max_epochs=2)
        # other examples of the same number: only the stored probe gives the old ones
        trainer.fit(Classifier(), loader(Numbered()), ckpt_path=save.best_model_path)
        old, new = callback.session.probe, again.session.probe
        assert numbers(new) == numbers(old)
        assert new.indices == old.indices
        assert new.population == old.population == 48


def test_stored_probe_wins_over_a_new_drawing(tmp_path):
    callback = WeightSymmetry()
    callback.session.probe.load_state_dict({"indices": [5, 3, 9], "seed": 0})

    class Trainer:
        train_dataloader = loader(Numbered())
        global_rank, world_size = 0, 1
        overfit_batches = 0
        datamodule = None
        strategy = type("S", (), {"root_device": torch.device("cpu")})
        precision_plugin = type("P", (), {"convert_input": staticmethod(lambda batch: batch)})

    callback.session.probe.draw(Trainer(), Classifier())
    assert callback.session.probe.indices == [5, 3, 9]
    assert numbers(callback.session.probe) == [5, 3, 9]


def test_ragged_probe_weighs_by_examples(tmp_path):
    callback = PlasticityOrderParameter(START, probe=48)
    module = Classifier()
    expected = module.criterion(module(blobs().tensors[0]), blobs().tensors[1])
    make_trainer(tmp_path, callback).fit(module, loader(batch_size=7))
    sizes = [batch_size(batch) for batch in callback.session.probe.batches]
    assert sizes == [6] * 8
    probe = [(x, y) for x, y in DataLoader(blobs(), batch_size=11)]
    assert [len(y) for _, y in probe] == [11, 11, 11, 11, 4]
    ragged = PlasticityOrderParameter(START, probe=probe)
    torch.manual_seed(0)
    module = Classifier()
    expected = module.criterion(module(blobs().tensors[0]), blobs().tensors[1])
    make_trainer(tmp_path / "ragged", ragged).fit(module, loader())
    measured = ragged.stored().series("order_parameter/risk").values[0]
    assert measured == pytest.approx(float(expected), rel=1e-5)
