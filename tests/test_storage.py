"""Saving and loading: bit for bit for every variant, and clear words for everything that does not fit."""

import inspect
import json

import pytest
import torch
from torch import nn

from pyro_mm import storage, variants
from pyro_mm.batch import Batch
from pyro_mm.evaluation import generate, log_conditional, log_marginal
from pyro_mm.evaluation.evidence import NoLikelihood
from pyro_mm.files import BadFile
from pyro_mm.likelihoods import Categorical, Laplace, Normal, Tokens
from pyro_mm.modality import Modality
from pyro_mm.networks import MLP, Conv, Custom, Embedding, Linear, Recurrent
from pyro_mm.objectives import Schedule, Warmup, elbo
from pyro_mm.recipe import Recipe
from pyro_mm.storage import load, save


def modalities():
    return [
        Modality("image", (4, 4), Normal(), Conv((4,), 8, nn.SiLU), decoder_net=MLP((8,), nn.Tanh)),
        Modality("label", (), Categorical(3), Embedding(8, (8,))),
        Modality("sound", (2,), Laplace(0.5), Linear()),
        Modality("text", (5,), Tokens(4), Recurrent(6)),
    ]


def rows(n=6):
    x = {
        "image": torch.randn(n, 4, 4),
        "label": torch.arange(n) % 3,
        "sound": torch.randn(n, 2),
        "text": torch.tensor([[1, 2, 3, 0, 0]]).repeat(n, 1),
    }
    return Batch(x)


def shuffled(recipe):
    """The recipe with parameters that no initialisation gives: normal draws, subnormals and infinities among them."""
    with torch.no_grad():
        for module in recipe.modules.values():
            for p in module.parameters():
                p.copy_(torch.randn_like(p) * 0.3)
    return recipe


def tensors(recipe):
    return {f"{n}.{k}": v for n, m in recipe.modules.items() for k, v in m.state_dict().items()}


def identical(a, b):
    """Equal names, dtypes and bits."""
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", variants.__all__)
def test_every_variant_comes_back_bit_for_bit(tmp_path, name):
    recipe = shuffled(getattr(variants, name)(modalities(), 3))
    save(recipe, tmp_path)
    again = load(tmp_path)
    assert identical(recipe, again)
    assert (again.name, again.paper, again.modalities) == (recipe.name, recipe.paper, recipe.modalities)
    assert again.config == recipe.config

    batch = rows()
    assert torch.equal(*(reported(r, batch) for r in (recipe, again)))


def reported(recipe, batch):
    """The marginal log-likelihood, else the conditional one, else (no density at all) a generated modality."""
    try:
        return log_marginal(recipe.model, recipe.guide, batch, k=8, seed=4).estimate
    except NoLikelihood:
        pass
    given = ["label", "sound", "text"]
    try:
        return log_conditional(recipe.model, recipe.guide, batch, "image", given, k=8, seed=4).estimate
    except NoLikelihood:
        return generate(recipe.model, recipe.guide, batch.only(*given), k=3, seed=4)["image"].mean


@pytest.mark.parametrize("name", variants.__all__)
def test_a_loaded_variant_trains_on_as_the_original(tmp_path, name):
    """Objective, schedules and shared modules are rebuilt too: one step of both gives the same parameters."""
    make = getattr(variants, name)
    takes = inspect.signature(make).parameters
    options = {"beta": Warmup(4.0, 0.1), "weights": {"image": Schedule(2.0)}}
    recipe = shuffled(make(modalities(), 3, **{k: v for k, v in options.items() if k in takes}))
    save(recipe, tmp_path)
    again = load(tmp_path)
    batch = rows()
    for r in (recipe, again):
        torch.manual_seed(0)
        r.objective.train().set_progress(1.0)
        step = torch.optim.SGD(r.objective.parameters(), 1e-3)
        r.objective(batch).backward()
        step.step()
    assert identical(recipe, again)


def test_double_precision_comes_back_as_such(tmp_path):
    recipe = variants.mvae(modalities(), 3)
    for module in recipe.modules.values():
        module.double()
    save(recipe, tmp_path)
    again = load(tmp_path)
    assert identical(recipe, again)
    assert again.model.prior.scale.dtype is torch.float64  # what is not in the state follows


def test_modules_that_are_shared_stay_shared(tmp_path):
    recipe = variants.mmvae_dreg(modalities(), 3)
    assert recipe.model.prior is recipe.guide.prior
    save(recipe, tmp_path)
    again = load(tmp_path)
    assert again.model.prior is again.guide.prior


def test_saving_and_loading_cost_no_random_draws(tmp_path):
    recipe = variants.mvae(modalities(), 3)
    before = torch.get_rng_state()
    save(recipe, tmp_path)
    load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_schedules_survive(tmp_path):
    recipe = variants.jmvae_kl(modalities(), 3, beta=Warmup(7.0, 0.2, 0.9), weights={"label": Schedule(5.0)})
    save(recipe, tmp_path)
    config = load(tmp_path).config
    beta = config["beta"]
    assert (type(beta), beta.epochs, beta.start, beta.end) == (Warmup, 7.0, 0.2, 0.9)
    assert type(config["weights"]["label"]) is Schedule
    assert config["weights"]["label"].value.item() == 5.0


def custom():
    net = Custom(
        encode=lambda shape, out: nn.Sequential(nn.Flatten(), nn.Linear(4, out)),
        decode=lambda dim, shape: nn.Linear(dim, 4),
    )
    return [Modality("image", (4,), Normal(1.0), net), Modality("label", (), Categorical(3), MLP((8,)))]


def test_a_users_network_is_passed_again(tmp_path):
    recipe = shuffled(variants.mvae(custom(), 3))
    save(recipe, tmp_path)
    with pytest.raises(ValueError, match=r"modality 'image': net.*recipe="):
        load(tmp_path)
    fresh = variants.mvae(custom(), 3)
    assert load(tmp_path, recipe=fresh) is fresh
    assert identical(recipe, fresh)


def test_a_users_own_pair_is_passed_again(tmp_path):
    def mine():
        base = variants.mvae(modalities(), 3)
        return Recipe("mine", base.model, base.guide, elbo(base.model, base.guide))

    recipe = shuffled(mine())
    save(recipe, tmp_path)
    with pytest.raises(ValueError, match=r"'mine' is no variant.*recipe="):
        load(tmp_path)
    assert identical(load(tmp_path, recipe=mine()), recipe)


def test_a_changed_variant_is_not_rebuilt_as_the_published_one(tmp_path):
    recipe = variants.mvae(modalities(), 3)
    recipe.model.decoders["sound"] = Modality("sound", (2,), Laplace(0.5), MLP((5,))).decoder(3)
    save(recipe, tmp_path)
    with pytest.raises(ValueError, match="its modules are not those that"):
        load(tmp_path)
    assert load(tmp_path, recipe=recipe) is recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: [*m[:2], Modality("sound", (2,), Normal(0.5), Linear()), m[3]],
            "another modality 'sound'.*likelihood",
        ),
        (lambda m: m[:3], "has 4 modalities, the recipe passed has 3"),
    ],
)
def test_another_recipe_is_refused(tmp_path, change, message):
    """Normal and Laplace decoders have the same parameters: only the description tells them apart."""
    save(variants.mvae(modalities(), 3), tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, recipe=variants.mvae(change(modalities()), 3))


def test_another_size_is_named(tmp_path):
    save(variants.mvae(modalities(), 3), tmp_path)
    with pytest.raises(ValueError, match=r"module 'model'.*shape \(8, 3\) in the file and \(8, 4\)"):
        load(tmp_path, recipe=variants.mvae(modalities(), 4))


def test_functions_have_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match="no modules"):
        save(Recipe("mine", lambda batch: None, lambda batch: None), tmp_path)


def edited(folder, **changes):
    path = folder / "recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edited(f, format=2, versions={"pyro_mm": "9.9"}), "format 2 by pyro_mm 9.9.*update pyro_mm"),
        (lambda f: edited(f, format="one"), "does not say which format"),
        (lambda f: edited(f, variant="nvae"), "no variant 'nvae'"),
        (lambda f: edited(f, config={"dims": 3}), r"no argument \['dims'\]"),
        (lambda f: edited(f, config={"beta": {"kind": "schedules.Jump"}}), "does not know 'schedules.Jump'"),
        (lambda f: edited(f, config={"beta": {"kind": "os.system", "fields": {}}}), "does not know 'os.system'"),
        (lambda f: (f / "recipe.json").write_text('{"format": 1'), "truncated or corrupt"),
        (lambda f: (f / "weights.pt").write_bytes((f / "weights.pt").read_bytes()[:-50]), "corrupt"),
        (lambda f: (f / "weights.pt").unlink(), "incomplete: weights.pt is missing"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    save(variants.mvae(modalities(), 3), tmp_path)
    damage(tmp_path)
    with pytest.raises(BadFile, match=message):
        load(tmp_path)


def test_an_empty_folder_holds_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no saved model"):
        load(tmp_path)


def test_a_save_cut_short_is_noticed(tmp_path, monkeypatch):
    """New weights beside the old description must not pass for either model."""
    save(variants.mvae(modalities(), 3), tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device", str(tmp_path / "recipe.json"))

    monkeypatch.setattr(storage, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        save(shuffled(variants.mvae(modalities(), 3)), tmp_path)
    with pytest.raises(BadFile, match="from another save"):
        load(tmp_path)


def test_the_card_states_data_program_objective_and_limits(tmp_path):
    recipe = variants.jmvae_kl(modalities(), 3, alpha=0.25)
    save(recipe, tmp_path, {"data": "four toys", "seed": 11})
    card = (tmp_path / "MODEL_CARD.md").read_text()
    net = "Conv(channels=(4,), width=8, activation=SiLU); decoder MLP(widths=(8,), activation=Tanh)"
    for part in ("four toys", "Suzuki", net, "Tokens(vocabulary=4, pad=0)", "seed: 11"):
        assert part in card
    assert repr(recipe.objective) in card
    save(variants.cvae(modalities(), 3), tmp_path)
    assert "conditional on label, sound, text" in (tmp_path / "MODEL_CARD.md").read_text()
