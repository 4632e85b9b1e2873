"""What `fit` refuses, and numbers that are not finite: stopped before they spread, and named."""

import math

import pyro
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, IterableDataset

from pyro_mm.batch import Batch
from pyro_mm.handlers import given
from pyro_mm.objectives import elbo, iwae
from pyro_mm.training import NonFiniteLoss, fit
from tests.helpers.training import At, data, pair, same, values


def fitted(objective, batch, epochs, **options):
    return fit(objective, batch, epochs, **{"batch_size": 8, "seed": 3, "lr": 1e-2, "progress": False} | options)


def poison(module):
    def action(state):
        with torch.no_grad():
            next(module.parameters()).fill_(math.nan)

    return action


def test_non_finite_loss_names_step_term_and_modality(tmp_path):
    model, guide = pair()
    objective = elbo(model, guide) + 0.5 * elbo(given(model, "label"), given(guide, "image"))
    with pytest.raises(NonFiniteLoss) as caught:
        fitted(objective, data(), 3, callbacks=[At(4, poison(model.decoders["image"]))], folder=tmp_path)
    error = caught.value
    assert (error.step, error.epoch) == (5, 2)
    assert "the loss is nan at step 5 (epoch 2 of training)" in str(error)
    assert "term 'elbo', modality 'image'" in error.culprits
    assert not any("label" in c or "count" in c or "elbo_2" in c for c in error.culprits)
    assert any("decoders.image.net" in c for c in error.culprits)
    history = fit(elbo(*pair()), data(), 1, batch_size=8, progress=False)  # the checkpoint of epoch 1 survives
    assert torch.load(tmp_path / "checkpoint.pt")["leg"]["epoch"] == len(history) == 1


def test_non_finite_loss_leaves_parameters_as_before_the_step():
    model, guide = pair()
    after = {}

    def keep_and_poison(state):
        after.update(values(guide))
        poison(model.decoders["label"])(state)

    with pytest.raises(NonFiniteLoss, match="modality 'label'"):
        fitted(elbo(model, guide), data(), 3, callbacks=[At(2, keep_and_poison)])
    assert same(after, values(guide))


def test_a_term_that_reports_only_its_total_is_searched():
    model, guide = pair()
    with pytest.raises(NonFiniteLoss, match="term 'iwae', modality 'count'"):
        fitted(iwae(model, guide, 3), data(), 1, callbacks=[At(1, poison(model.decoders["count"]))])


def test_a_bad_encoder_is_named_by_its_parameters():
    model, guide = pair()
    with pytest.raises(NonFiniteLoss, match=r"parameter terms\.0\.guide\.encoders\.image\.net"):
        fitted(elbo(model, guide), data(), 1, callbacks=[At(1, poison(guide.encoders["image"]))])


class Hidden(nn.Module):
    """A finite loss with a NaN gradient, as a NaN under a mask gives."""

    def __init__(self):
        super().__init__()
        self.good, self.bad = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        return self.good + torch.where(self.bad > 0, self.bad.sqrt() / self.bad, 0.0)


def test_a_non_finite_gradient_stops_before_it_spreads():
    objective = Hidden()
    with pytest.raises(NonFiniteLoss, match=r"the gradient is not finite at step 1 .*the gradient of bad"):
        fit(objective, data(), 1, progress=False)
    assert objective.good.item() == 1.0 and objective.bad.item() == 0.0


def test_non_finite_validation_is_an_error():
    valid = data(4)
    valid.x["image"][2] = math.inf
    with pytest.raises(NonFiniteLoss, match=r"the validation loss is nan .*the data of modality 'image'"):
        fitted(elbo(*pair()), data(), 1, validation=valid)


def test_global_parameters_are_refused_before_and_during_training():
    model, guide = pair()
    with pyro.get_param_store().scope():
        pyro.param("left_over", torch.ones(1))
        with pytest.raises(ValueError, match=r"left_over.*before training.*clear_param_store"):
            fitted(elbo(model, guide), data(), 1)

    def with_param(batch):
        pyro.param("temperature", torch.ones(1))
        return guide(batch)

    with pyro.get_param_store().scope(), pytest.raises(ValueError, match=r"temperature.*never be trained"):
        fitted(elbo(model, with_param), data(), 1)


class Late(nn.Module):
    """Uses `pyro.param` only once training has begun."""

    def __init__(self, guide):
        super().__init__()
        self.guide = guide

    def forward(self, batch):
        if self.training:
            pyro.param("late", torch.ones(1))
        return self.guide(batch)


def test_global_parameters_that_appear_later_are_refused():
    model, guide = pair()
    before = values(model, guide)
    with pyro.get_param_store().scope(), pytest.raises(ValueError, match=r"late.*after the forward pass of step 1"):
        fitted(elbo(model, Late(guide)), data(), 1)
    assert same(before, values(model, guide))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (elbo(*pair()), data()[:0]), "the data are empty"),
        (lambda: (elbo(*pair()), DataLoader(data(4), 8, drop_last=True, collate_fn=Batch.collate)), "empty"),
        (lambda: (nn.Identity(), data()), "nothing to train: of its 0 parameters"),
        (lambda: (elbo(*[p.requires_grad_(False) for p in pair()]), data()), "none of these has requires_grad"),
        (lambda: (elbo(*pair()), Batch({"image": torch.zeros(4, 3)})), r"\['count', 'label'\] would never be trained"),
    ],
)
def test_what_cannot_be_trained_is_refused(make, message):
    objective, batch = make()
    with pytest.raises(ValueError, match=message):
        fit(objective, batch, 1, progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (elbo(*pair()), {"image": torch.zeros(4, 3)}), "Batch.of"),
        (lambda: (elbo(*pair()), DataLoader(list(range(4)), 2)), "gave Tensor where a Batch is needed"),
        (lambda: ("elbo", data()), "fit takes an objective"),
    ],
)
def test_wrong_kinds_are_refused(make, message):
    objective, batch = make()
    with pytest.raises(TypeError, match=message):
        fit(objective, batch, 1, progress=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"patience": 2}, ValueError, "give `validation`"),
        ({"patience": 0, "validation": data()}, ValueError, "patience must be at least 1"),
        ({"schedule": ReduceLROnPlateau}, ValueError, "give `validation`"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm must be positive"),
        ({"resume": True}, ValueError, "need a folder"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"epochs": 0}, ValueError, "at least 1 epoch"),
        ({"optimiser": torch.optim.SGD([nn.Parameter(torch.ones(1))])}, TypeError, "made from parameters"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        fit(elbo(*pair()), data(), **{"epochs": 1, "progress": False} | options)


def test_data_that_can_be_read_only_once_are_refused():
    class Once(IterableDataset):
        rows = iter([data(4), data(4), data(4)])

        def __iter__(self):
            return self.rows

    with pytest.raises(ValueError, match=r"no minibatch in epoch 2: can they be read only once"):
        fit(elbo(*pair()), DataLoader(Once(), 1, collate_fn=Batch.collate), 3, progress=False)
