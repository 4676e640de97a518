"Few-shot subsets are nested, stratified, seeded and within their budget, on arbitrary corpora and folds."
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st

from mser.core import InputError
from mser.corpora.simulated import SIMULATED, simulate
from mser.fewshot import PAPER_SIZES, few_shot, parse_budget, stratified_order
from mser.manifest import make_manifest
from mser.protocols import PARTS, PROTOCOLS, Splits, make_splits

few = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 1000)
counts = st.lists(st.integers(1, 60), min_size=2, max_size=7)


def labelled(counts, seed=0):
    labels = np.random.default_rng(seed).permutation(np.repeat([f"class{c}" for c in "abcdefg"[:len(counts)]], counts))
    return pd.Series(labels, index=[f"u{i:04}" for i in range(len(labels))])


def corpus(n=240, n_speakers=12, seed=0):
    rng = np.random.default_rng(seed)
    speaker = rng.permutation(np.arange(n) % n_speakers)
    return make_manifest(pd.DataFrame({"id": [f"u{i:04}" for i in range(n)], "corpus": "made", "text": "", "speaker": [f"s{s:02}" for s in speaker],
                                       "session": [f"r{s % 5}" for s in speaker], "fold": [f"{s % 4}" for s in speaker], "split": np.array(PARTS)[speaker % 3],
                                       "label": rng.choice(["anger", "fear", "sadness"], n, p=[.5, .3, .2])}))


corpora = st.builds(corpus, st.integers(200, 300), st.just(12), st.integers(0, 10**6))


@few
@given(counts, seeds)
def test_every_beginning_is_stratified(counts, seed):
    labels = labelled(counts, seed)
    ordered = labels[stratified_order(labels, seed)]
    assert sorted(ordered.index) == list(labels.index)
    share = labels.value_counts(normalize=True)
    seen = pd.get_dummies(ordered)[share.index].cumsum().to_numpy()
    off = np.abs(seen - np.outer(np.arange(1, len(labels) + 1), share))
    assert (off <= (1 + len(share) * share.to_numpy()) / 2 + 1e-9).all()


@few
@given(counts, seeds, st.randoms(use_true_random=False))
def test_the_order_depends_on_content_and_seed_alone(counts, seed, random):
    labels = labelled(counts)
    rows = list(range(len(labels)))
    random.shuffle(rows)
    assert stratified_order(labels.iloc[rows], seed) == stratified_order(labels, seed)
    if len(labels) > 30: assert stratified_order(labels, seed) != stratified_order(labels, seed + 1)


@few
@given(corpora, st.sampled_from(list(PROTOCOLS)), st.data(), seeds, st.booleans())
def test_budgets_are_kept_and_nested_in_every_fold(manifest, protocol, data, seed, full):
    whole = make_splits(manifest, protocol)
    room = min(len(whole.fold(k)["train"]) + (0 if full else len(whole.fold(k)["val"])) for k in range(whole.n_folds))
    small, large = sorted(data.draw(st.tuples(st.integers(30, room), st.integers(30, room))))
    few_labels, more = few_shot(whole, manifest, small, seed, full), few_shot(whole, manifest, large, seed, full)
    for k in range(whole.n_folds):
        a, b, c = few_labels.fold(k), more.fold(k), whole.fold(k)
        assert len(a["train"]) + (0 if full else len(a["val"])) == small
        for part in PARTS: assert a[part] and set(a[part]) <= set(b[part]) <= set(c[part])
        assert a["test"] == b["test"] == c["test"] and not full or a["val"] == c["val"]


@few
@given(corpora, st.sampled_from(["random", "speaker-kfold"]), seeds)
def test_the_whole_budget_is_the_protocol(manifest, protocol, seed):
    whole = make_splits(manifest, protocol)
    for full in (False, True): pd.testing.assert_frame_equal(few_shot(whole, manifest, 1.0, seed, full).table, whole.table)


@few
@given(corpora, st.integers(40, 150), seeds)
def test_parts_of_a_budget_are_stratified(manifest, budget, seed):
    whole, labels = make_splits(manifest, "speaker-split"), manifest.table.set_index("id").label
    cut = few_shot(whole, manifest, budget, seed)
    for part in ("train", "val"):
        share = labels[whole.fold(0)[part]].value_counts(normalize=True)
        kept = labels[cut.fold(0)[part]].value_counts().reindex(share.index, fill_value=0)
        assert ((kept - share * kept.sum()).abs() <= (1 + len(share) * share) / 2 + 1e-9).all()


def test_seed_and_budget_change_the_fingerprint_and_the_name_says_what_was_paid():
    manifest = corpus()
    whole = make_splits(manifest, "random")
    cuts = [few_shot(whole, manifest, *arguments) for arguments in ((60,), (60, 1), (61,), (60, 0, True), (0.5,))]
    assert len({c.fingerprint for c in [whole, *cuts]}) == 6
    assert [c.protocol for c in cuts] == ["random/60", "random/60", "random/61", "random/60+val", "random/50%"]
    assert "to train and select" in cuts[0].title and "full validation besides" in cuts[3].title
    assert few_shot(whole, manifest, 60).fingerprint == cuts[0].fingerprint


def test_cut_splits_come_back_from_their_file(tmp_path):
    cut = few_shot(make_splits(corpus(), "speaker-kfold"), corpus(), 60)
    cut.save(tmp_path/"cut.parquet")
    assert Splits.load(tmp_path/"cut.parquet").fingerprint == cut.fingerprint


def test_the_paper_sizes_on_a_corpus_of_cremad_s_shape():
    manifest = simulate(SIMULATED["sim-cremad"]).manifest
    whole = make_splits(manifest, "random")
    assert whole.table.part.value_counts().to_dict() == {"train": 3920, "val": 490, "test": 490}
    for size in PAPER_SIZES:
        inside, besides = few_shot(whole, manifest, size).table.part.value_counts(), few_shot(whole, manifest, size, full_validation=True).table.part.value_counts()
        assert inside.train + inside.val == size and inside.test == besides.test == besides.val == 490 and besides.train == size


@pytest.mark.parametrize("budget, message", [
    (0, "a budget of 0 utterances"), (-5, "a budget of -5 utterances"), (500, "a budget of 500 utterances, there are 216"), (0.0, "a budget of 0 is no share"),
    (1.01, "is no share"), (float("nan"), "is no share"), (1, "to train and none of them is"), (2, "to train and none of them is"), (4, "no utterance to validate")])
def test_budgets_that_cannot_be_met(budget, message):
    manifest = corpus()
    with pytest.raises(InputError, match=message) as error: few_shot(make_splits(manifest, "random"), manifest, budget)
    assert "\n" not in str(error.value)


@given(st.integers(1, 10**6))
def test_numbers_are_read_as_written(n): assert parse_budget(f"{n}") == parse_budget(f"{n:,}") == n


@pytest.mark.parametrize("text", ["", "ten", "%", "1e", "10 percent"])
def test_what_is_no_budget(text):
    with pytest.raises(InputError, match="neither a number"): parse_budget(text)
