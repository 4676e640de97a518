"""Ablation, transfer and combination as the runner executes them: which runs stand behind the tables, and what no label may touch."""
import json

import pandas as pd
import pytest

from mser.reproduce import execute, experiment_notebooks
from mser.runs import RunStore

CORPORA = {"sim-iemocap": None, "sim-cremad": None}
EIGHT = ["none of the three", "VGA", "EAAF", "MICL", "VGA + EAAF", "VGA + MICL", "EAAF + MICL", "VGA + EAAF + MICL"]


class Workspace:
    "A workspace of small simulated corpora, in which every notebook is executed once."
    def __init__(self, root): self.root, self.executed = root, {}

    def run(self, name, corpora=CORPORA, **own):
        if name not in self.executed:
            parameters = {"corpora": corpora, "out": str(self.root), "profile": "smoke", "workers": 1, "command": f"mser reproduce --only {name}", **own}
            self.executed[name] = execute(experiment_notebooks()[name], parameters, self.root)
        return self.executed[name]

    @property
    def store(self): return RunStore(self.root/"runs")
    def table(self, name): return pd.read_csv(self.root/"tables"/f"{name}.csv").set_index("row")
    def runs(self, name): return {row: [self.store.spec(h) for h in hashes] for row, hashes in json.loads((self.root/"tables"/f"{name}.json").read_text())["runs"].items()}


@pytest.fixture(scope="module")
def work(tmp_path_factory): return Workspace(tmp_path_factory.mktemp("experiments"))


def finished(work, name, *tables, **own):
    done = work.run(name, **own)
    assert not done.failure, done.failure
    for table in tables:
        for suffix in (".csv", ".md", ".tex", ".json"): assert (work.root/"tables"/f"{table}{suffix}").stat().st_size > 100, table
        assert "Simulated data" in (work.root/"tables"/f"{table}.md").read_text()
        html = json.loads((work.root/"tables"/f"{table}.json").read_text())["html"]
        assert html.count('href="#') == html.count('scope="row"') > 0, table # every line leads to its runs


def test_combined_networks_are_tested_on_each_corpus_by_itself(work):
    finished(work, "combined", "combined-sim-iemocap", "combined-sim-cremad", "combined-effects-sim-iemocap-sim-cremad")
    for corpus in CORPORA:
        alone, both = work.runs(f"combined-{corpus}").values()
        assert len(alone) == len(both) == 2 and {s.target.corpus for s in both} == {corpus}
        for one, other in zip(alone, both):
            trained = other.start
            assert {d.corpus for d in (trained.data, *trained.also)} == set(CORPORA) and trained.fold == one.fold
            tested = [set(t[t.part == "test"]["id"]) for t in map(work.store.predictions, (one.hash, other.hash))]
            assert tested[0] == tested[1]


def test_cross_corpus_adds_only_what_is_not_there(work):
    work.run("combined")
    before = set(work.store.hashes())
    finished(work, "cross_corpus", "cross_corpus-sim-iemocap", "cross_corpus-sim-cremad")
    assert list((work.root/"figures").glob("cross_corpus-*-1-matrix.svg"))
    for corpus in CORPORA:
        rows = work.runs(f"cross_corpus-{corpus}")
        tested = [{i for s in specs for t in [work.store.predictions(s.hash)] for i in t[t.part == "test"]["id"]} for specs in rows.values()]
        assert len(rows) == 3 and tested[0] == tested[1] == tested[2]
    new = {h: work.store.spec(h) for h in set(work.store.hashes()) - before}
    assert new and all(s.target is not None and s.method.train.epochs == 0 or s.fold == 0 for s in new.values()), "something was trained that other tables have"


def test_fine_tuning_begins_with_the_source_run_of_the_in_domain_table(work):
    finished(work, "finetune", "finetune-sim-cremad", "finetune-effects-sim-cremad")
    rows = work.runs("finetune-sim-cremad")
    source = rows["full model, the source on its own"][0]
    for name in ("full model, zero-shot", "full model, fine-tuned", "full model, fine-tuned, text and audio frozen"):
        assert {s.start.hash for s in rows[name]} == {source.hash}
    gentle = rows["full model, fine-tuned"][0].method.train
    assert gentle.lr == pytest.approx(source.method.train.lr/10) and gentle.keep == "best" and source.method.train.keep == "last"
    assert rows["full model, fine-tuned, text and audio frozen"][0].method.train.freeze == ("text", "audio")


def test_few_shot_budgets_pay_for_selection_and_never_touch_the_test_part(work):
    finished(work, "few_shot", "few_shot-sim-cremad", "few_shot-effects-sim-cremad", shares=[0.2, 1.0])
    rows, numbers = work.runs("few_shot-sim-cremad"), work.table("few_shot-sim-cremad")
    assert list(numbers.index) == ["full model, zero-shot", "full model, fine-tuned, budget, 20%", "full model, fine-tuned, budget, 100%",
                          "full model, fine-tuned, full validation besides, 20%", "full model, from scratch, budget, 20%", "full model, from scratch, budget, 100%"]
    whole, paid, full = (numbers.loc[f"full model, fine-tuned, {n}", "labels"] for n in ("budget, 100%", "budget, 20%", "full validation besides, 20%"))
    assert paid == round(0.2*whole) and paid < full < whole
    for name, specs in rows.items():
        for spec in specs:
            metrics, of = work.store.metrics(spec.hash), work.store.predictions(spec.hash)
            tested, selected = (set(of[of.part == p]["id"]) for p in ("test", "val"))
            assert not tested & selected
            if name.endswith("budget, 20%"): assert metrics["n_train"] + metrics["n_val"] == pytest.approx(paid, rel=0.05)
    same = [work.store.predictions(rows[f"full model, {n}, budget, 20%"][0].hash) for n in ("fine-tuned", "from scratch")]
    assert [set(t[t.part == "val"]["id"]) for t in same][0] == [set(t[t.part == "val"]["id"]) for t in same][1]


def test_adaptation_selects_without_the_target(work):
    finished(work, "adaptation", "adaptation-sim-iemocap-sim-cremad", "adaptation-effects-sim-iemocap-sim-cremad", methods=["none", "coral"], both_ways=False)
    rows = work.runs("adaptation-sim-iemocap-sim-cremad")
    assert set(rows) == {"full model, no adaptation", "full model, CORAL", "full model, target's labels"}
    for spec in [s for name, specs in rows.items() if "labels" not in name for s in specs]:
        selected = work.store.predictions(spec.hash).query("part == 'val'")
        assert set(selected["corpus"]) == {"sim-iemocap"} and spec.target.corpus == "sim-cremad"


def test_ablation_has_the_eight_rows_and_shares_two_with_the_others(work):
    work.run("combined")
    finished(work, "ablation", "ablation-sim-iemocap", "ablation-effects-sim-iemocap", corpora={"sim-iemocap": None})
    rows, numbers = work.runs("ablation-sim-iemocap"), work.table("ablation-sim-iemocap")
    assert set(rows) == set(EIGHT) and list(numbers.index) == EIGHT and numbers["ua_validation"].between(0, 1).all()
    assert [s.hash for s in rows[EIGHT[-1]]] == [s.hash for s in work.runs("combined-sim-iemocap")["full model, alone"]]
    effects = pd.read_csv(work.root/"tables"/"ablation-effects-sim-iemocap.csv").set_index("effect")
    assert list(effects.index) == ["VGA", "EAAF", "MICL", "VGA × EAAF", "VGA × MICL", "EAAF × MICL", "VGA × EAAF × MICL"]
    ua = pd.Series({n: sum(work.store.metrics(s.hash)["test"]["ua"] for s in specs)/len(specs) for n, specs in rows.items()})
    for part in ("VGA", "EAAF", "MICL"):
        has = ua.index.str.contains(part)
        assert effects.loc[part, "difference"] == pytest.approx(ua[has].mean() - ua[~has].mean())


@pytest.mark.parametrize("name", ["finetune", "few_shot", "adaptation", "combined", "cross_corpus"])
def test_one_corpus_is_not_enough_and_the_notebook_says_so(name, tmp_path_factory):
    alone = Workspace(tmp_path_factory.getbasetemp()/"one-corpus")
    done = alone.run(name, corpora={"sim-cremad": None})
    assert "two corpora with the same classes" in (done.failure or str(done)) and not list(alone.root.glob("runs/*"))
