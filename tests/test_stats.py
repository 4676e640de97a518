"What holds of every test and interval, whatever the scores: symmetry, invariance, agreement with the libraries and with each other."
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from scipy import stats as scipy_stats

from mser.core import InputError
from mser.stats import TESTS, clustered_bootstrap, compare, holm, mcnemar, mean_interval, paired_test, speaker_ua

SCORES = st.integers(0, 100).map(lambda n: n/100)
PAIRS = st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=9)
quick = settings(max_examples=40, deadline=None)


@quick
@given(PAIRS, st.sampled_from(TESTS), st.floats(-1, 1))
def test_a_paired_test_has_two_sides_and_no_origin(pairs, test, shift):
    a, b = np.array(pairs).T
    forth, back, moved = paired_test(a, b, test), paired_test(b, a, test), paired_test(a + shift, b + shift, test)
    assert 0 <= forth.p <= 1 and forth.p == pytest.approx(back.p) and forth.p == pytest.approx(moved.p, abs=1e-6)
    assert forth.difference == pytest.approx(-back.difference) and forth.rank_biserial == pytest.approx(-back.rank_biserial)
    assert forth.low == pytest.approx(-back.high)


@quick
@given(PAIRS, st.floats(0, 2))
def test_the_t_test_and_its_interval_are_scipys_and_agree(pairs, overlap):
    a, b = np.array(pairs).T
    if np.ptp(np.round(a - b, 12)) == 0: return
    plain, wide = paired_test(a, b, "t"), paired_test(a, b, "t", overlap)
    assert plain.p == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue, abs=1e-9)
    assert wide.p >= plain.p - 1e-12 and wide.high - wide.low >= plain.high - plain.low - 1e-12
    for r in (plain, wide):  # zero is outside the 95 % interval exactly when p is below 5 %
        if abs(r.p - .05) > 1e-6: assert (r.p < .05) == (r.low > 0 or r.high < 0)


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_raw_value_and_bonferroni_and_keeps_the_order(p):
    adjusted, p = holm(p), np.array(p)
    assert (adjusted >= p).all() and (adjusted <= np.minimum(p*len(p), 1) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


@quick
@given(st.lists(st.tuples(*[st.integers(0, 2)]*3), min_size=1, max_size=14))
def test_mcnemar_is_the_permutation_test_over_utterances(rows):
    y, a, b = np.array(rows).T
    m, permutation = mcnemar(y, a, b), paired_test(a == y, b == y)
    assert m.p == pytest.approx(permutation.p) and m.mid_p <= m.p + 1e-12 and m.difference == pytest.approx(permutation.difference)


@quick
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_ua_of_a_speaker_is_that_of_the_speakers_utterances(rows):
    speaker, y, p = map(np.array, zip(*rows))
    for name, ua in speaker_ua(y, p, speaker, 3).items():
        own = speaker == name
        assert ua == pytest.approx(np.mean([(p[own & (y == c)] == c).mean() for c in np.unique(y[own])]))


def made(n_seeds=6, n_folds=3, names=("base", "x", "y"), seed=0):
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([names, range(n_seeds), range(n_folds)], names=["configuration", "seed", "fold"])
    return pd.Series(rng.random(len(index)), index, name="ua").reset_index()


@quick
@given(st.integers(0, 10**6), st.sampled_from(TESTS))
def test_compare_is_the_paired_test_of_means_in_any_order_of_rows(seed, test):
    table = made(seed=seed)
    found = compare(table.sample(frac=1, random_state=seed), "ua", "base", average=["fold"], test=test)
    means = table.groupby(["configuration", "seed"]).ua.mean()
    for name in ("x", "y"):
        expected = paired_test(means[name], means["base"], test)
        assert [found.loc[name, k] for k in ("difference", "low", "high", "p", "d_z", "n")] == pytest.approx([*expected[2:6], expected.d_z, 6])
    assert found.p_holm.tolist() == pytest.approx(holm(found.p))


@pytest.mark.parametrize("spoil, part", [
    (lambda t: t.drop(index=0), "no ua for configuration base, seed 0, fold 0"),
    (lambda t: t.assign(ua=t.ua.where(t.index != 20)), "no ua for configuration x, seed 0, fold 2"),
    (lambda t: pd.concat([t, t.iloc[[3]]]), "two scores for configuration base, seed 1, fold 0"),
    (lambda t: t[t.configuration != "base"], "unknown configuration 'base'"),
    (lambda t: t[t.configuration == "base"], "nothing to compare")])
def test_runs_that_do_not_pair_are_refused_by_name(spoil, part):
    with pytest.raises(InputError, match=part): compare(spoil(made()), "ua", "base", average=["fold"])


def test_an_overlap_is_not_ignored():
    with pytest.raises(InputError, match="permutation test takes no overlap"): compare(made(), "ua", "base", average=["fold"], overlap=.5)
    over_folds = [compare(made(), "ua", "base", pairs=["fold"], average=["seed"], test="t", overlap=o).p["x"] for o in (0, .5)]
    assert over_folds[0] < over_folds[1]


def test_intervals_over_seeds_cover_what_they_promise():
    rng = np.random.default_rng(0)
    covered = [(i := mean_interval(rng.normal(.6, .05, 5))).low <= .6 <= i.high for _ in range(2000)]
    assert abs(np.mean(covered) - .95) < 4*np.sqrt(.95*.05/2000)


def test_the_clustered_interval_is_wider_when_speakers_differ_and_not_when_they_do_not():
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(20), 50)
    def widths(spread):
        hit = rng.random(1000) < (.6 + rng.normal(0, spread, 20))[speaker]
        both = [clustered_bootstrap(np.mean, groups, hit, n_resamples=400) for groups in (speaker, np.arange(1000))]
        return [b.high - b.low for b in both]
    (clustered, naive), (same, as_naive) = widths(.15), widths(0)
    assert clustered > 1.5*naive and abs(same/as_naive - 1) < .4
